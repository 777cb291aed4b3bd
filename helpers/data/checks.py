"""Every file is opened once, and what was found is a table: one row per finding, with what the run does about it."""

import hashlib
import io
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from helpers import resolve_path, write_atomically
from helpers.data import reading
from helpers.data.duplicates import SIDE, find_similar, group_pairs
from helpers.data.names import PART_WORDS, find_words, fold_name
from helpers.data.parallel import in_parallel
from helpers.data.splits import find_shortages
from helpers.data.tables import to_csv

COLUMNS = ("path", "label", "split", "severity", "problem", "action", "reason", "other", "group")
POLICIES = ("exclude", "stop", "keep")


class Kind(NamedTuple):
    """What is done about a problem."""

    severity: str
    action: str  # under "exclude"; and what "keep" keeps is what is "left out" although it can be used
    usable: bool


_KINDS = {
    ("error", "left out", False): "not an image; empty file; truncated; damaged; too large; unsupported; "
    "no permission; missing file; broken link; not a file; bad name; outside; incomplete row; contradiction",
    ("error", "stops the run", False): "too few images",
    ("error", "left out", True): "two labels",
    # what would spoil the answer
    ("warning", "left out", True): "duplicate across parts; near-duplicate across parts; group across parts; "
    "duplicate; blank; too small",
    # what a person should look at
    ("warning", "kept together", True): "similar, two labels",
    ("warning", "kept", True): "two spellings; named like a part; shortcut; too bright; too dark; few images",
    ("warning", "ignored", True): "empty class",
    # what is good to know
    ("note", "kept together", True): "near-duplicate",
    ("note", "kept", True): "imbalance; bit depth; animation; wrong extension; EXIF rotation",
    ("note", "ignored", True): "repeated row; stray file",
}

KINDS = {problem: Kind(*kind) for kind, problems in _KINDS.items() for problem in problems.split("; ")}
"""Every problem, from the worst to the most harmless: its severity, and what is done about it."""

# what is reported of classes:
FEW_IMAGES = 10  # images to learn from, where there are fewer
IMBALANCE = 5  # times as many images in the largest class as in the smallest
SHORTCUT = 0.75  # how much more often, as a share, a property is seen in one than in the others

_PRECEDENCE = {"": -1, "train": 0, "validation": 1, "test": 2}
_LIKE = "like "


class _Finding(NamedTuple):
    problem: str
    reason: str
    path: str = ""
    label: str = ""
    split: str = ""
    other: str = ""
    group: str = ""


def check_images(
    found: pd.DataFrame, *, on_problem: str = "exclude", white: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the images that can be decoded, measured and grouped, and a table of everything that was found.

    Every file is read once, in parallel. Nothing is left out yet: `exclude_problems` does what the table says.

    Args:
        found: from `find_images`.
        on_problem: "exclude" leaves out what cannot be used or would spoil the answer, "keep" only what cannot be
            decoded, and near-duplicates may land in different parts. "stop" lets `exclude_problems` raise.
        white: the value that becomes 255 in images of 16 bits, 1 to 65535; None for the one that suits the set.

    Returns:
        The images, with width and height (pixels), sha256 (of the file), white if there are images of 16 bits, and
        copies and near-duplicates joined in `group`. And the problems (`COLUMNS`), worst first.
    """
    check_policy(on_problem)
    known, images = found[found["problem"] != ""], found[found["problem"] == ""]
    findings = [
        _Finding(row.problem, row.reason, row.path, row.label, row.split, "", row.group) for row in known.itertuples()
    ]
    images = images.drop(columns=["problem", "reason"]).reset_index(drop=True)
    images, similar, told = _open_all(images, white)
    findings += told + _find_shortcuts(images) + _find_small(images)
    leaving = {finding.path for finding in findings if finding.problem in ("blank", "too small")}
    images, told = _find_duplicates(images, similar, leaving, join=on_problem != "keep")
    findings += told
    images = images.drop(columns=["pixels", "format", "brightest"])
    problems = _tabulate(findings, on_problem)
    named = found["problem"].isin(["", *(problem for problem, kind in KINDS.items() if not kind.usable)])
    classes = sorted(set(found.loc[named, "label"]) - {""})
    findings += _count_classes(_without(images, problems), classes, problems)
    return images, _tabulate(findings, on_problem)


def check_policy(on_problem: str) -> None:
    """Raises ValueError if the policy is none of `POLICIES`."""
    if on_problem not in POLICIES:
        raise ValueError(f'Expected `on_problem` to be "exclude", "stop" or "keep". Received {on_problem!r}.')


def _tabulate(findings: list[_Finding], on_problem: str) -> pd.DataFrame:
    """Returns the table of problems, the worst first."""
    problems = pd.DataFrame(findings, columns=_Finding._fields, dtype="str")
    decided = [(KINDS[finding.problem].severity, _decide(finding, on_problem)) for finding in findings]
    problems[["severity", "action"]] = pd.DataFrame(decided, columns=["severity", "action"], dtype="str")
    order = problems["problem"].map(list(KINDS).index)
    problems = problems.assign(order=order).sort_values(["order", "path"], kind="stable", ignore_index=True)
    return problems[list(COLUMNS)]


def _decide(finding: _Finding, on_problem: str) -> str:
    """Returns what is done about it."""
    kind = KINDS[finding.problem]
    if on_problem == "stop" and kind.severity != "note":
        return "stops the run"
    given_to_test = finding.problem == "duplicate" and finding.split in ("validation", "test")
    keep = on_problem == "keep" and kind.usable and kind.action != "ignored"
    return "kept" if given_to_test or keep else kind.action


def _without(images: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    # not by rows about what was never opened: another row of a table may give the same file a label
    usable = problems["problem"].isin([problem for problem, kind in KINDS.items() if kind.usable])
    return images[~images["path"].isin(problems.loc[usable & (problems["action"] == "left out"), "path"])]


def exclude_problems(images: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """Returns the images without those that the table leaves out; ValueError if one of the problems stops the run."""
    stops = problems[problems["action"] == "stops the run"]
    if len(stops):
        some = "".join(
            f"\n  {row.path or f'class {row.label!r}'}: {row.problem}: {row.reason}" for row in stops[:5].itertuples()
        )
        rest = f"\n  and {len(stops) - 5} more" if len(stops) > 5 else ""
        raise ValueError(
            f"The data have {len(stops)} problem{'s' * (len(stops) > 1)} to be settled first:{some}{rest}\n"
            f"All are listed in problems.csv, in the run's folder. Add images, or remove what is wrong, or its class."
        )
    kept = _without(images, problems).reset_index(drop=True)
    if kept["label"].nunique() < 2:
        raise ValueError(f"Expected at least two classes. Left are {len(kept)} images of one. See problems.csv.")
    # a near-duplicate whose twin is gone needs no group any more
    alone = ~kept["group"].duplicated(keep=False) & kept["group"].str.startswith(_LIKE)
    return kept.assign(group=kept["group"].mask(alone, ""))


def save_problems(problems: pd.DataFrame, path: str | Path) -> None:
    """Writes the table as CSV, whole or not at all."""
    write_atomically(Path(path), to_csv(problems))


def summarize_problems(problems: pd.DataFrame) -> pd.DataFrame:
    """Returns the number of findings (and of groups that they form) by problem and action, worst first."""
    table = problems.groupby(["problem", "severity", "action"], sort=False)
    groups = table["group"].agg(lambda names: str(names[names != ""].nunique() or ""))
    return pd.DataFrame({"findings": table.size(), "groups": groups}).reset_index().set_index("problem")


# ---- one file


class _Opened(NamedTuple):
    remarks: tuple = ()  # (problem, reason), ...
    width: int = 0  # 0 for what cannot be decoded
    height: int = 0
    sha256: str = ""
    pixels: str = ""  # a hash of them, of a small image
    comparable: bool = False
    format: str = ""
    brightest: int = 0  # of 16 bits; 0 for an image of 8


def _open_all(images: pd.DataFrame, white: int | None) -> tuple[pd.DataFrame, np.ndarray, list[_Finding]]:
    """Returns the images that can be decoded, with what is known of each; their similar pairs; and findings."""
    paths, opened = images["path"].tolist(), [_Opened()] * len(images)
    with tempfile.TemporaryFile() as file:  # a kilobyte an image, and none of it in memory
        thumbnails = np.memmap(file, "uint8", "w+", shape=(len(paths) + 1, SIDE, SIDE))

    def look(rows, white: int, title: str) -> None:
        results = in_parallel(lambda row: _open(paths[row], white), rows, title=title)
        for row, result in zip(rows, results, strict=True):
            opened[row], thumbnails[row] = result

    look(range(len(paths)), reading.FULL_WHITE, "checking images")
    reached = {row: one.brightest for row, one in enumerate(opened) if one.brightest}
    if reached:  # only now it is known what is white in them
        white = white or reading.choose_white(list(reached.values()))
        look(list(reached), white, "checking images of 16 bits")
    findings = [
        _Finding(*remark, row.path, row.label, row.split)
        for row, one in zip(images.itertuples(), opened, strict=True)
        for remark in one.remarks
    ]
    known = pd.DataFrame(opened, columns=_Opened._fields).drop(columns="remarks")
    known = known.astype({name: type(default) for name, default in _Opened._field_defaults.items() if name in known})
    usable = (known["width"] > 0).to_numpy()
    comparable = known["comparable"].to_numpy() & ~known["sha256"].duplicated().to_numpy()  # each content once
    similar = find_similar(thumbnails, np.flatnonzero(comparable))
    similar[:, :2] = (usable.cumsum() - 1)[similar[:, :2]]
    images = images.join(known.drop(columns="comparable"))[usable].reset_index(drop=True)
    if reached:
        images["white"] = white
        half, brightest = np.median(list(reached.values())), paths[max(reached, key=reached.get)]
        reason = (
            f"{len(reached)} of {len(images)} files have 16 bits: in each, 0 is black and {white} is white, by the "
            f"largest values in the set. Half of them reach {half:.0f} at most; {brightest} is the brightest"
        )
        findings.append(_Finding("too dark" if 4 * half < white else "bit depth", reason))
    return images, similar, findings


def _open(path: str, white: int) -> tuple[_Opened, np.ndarray | int]:
    """Returns what is known of one file, and its thumbnail."""
    content = b""
    try:
        content = reading.read_file(path)
        return _measure(path, content, white)
    except Exception as error:  # Pillow's plugins raise many kinds; each is a row in the table, with its file
        return _Opened((explain(error, path, content),)), 0


def _measure(path: str, content: bytes, white: int) -> tuple[_Opened, np.ndarray]:
    # Few calls that wait for Python's lock: with two threads, waiting took as long as decoding
    with reading.open_image(io.BytesIO(content)) as image, reading.taking_turns(image):
        format = "JPEG" if image.format == "MPO" else image.format
        (width, height), turned = image.size, reading.find_orientation(image)
        pixels, brightest, small = "", 0, min(width, height) < SIDE
        if format == "JPEG" and image.mode in ("RGB", "L") and not small:
            # All of the file is decoded, but only to grey and small: twice as fast, and enough to compare
            image.draft("L", (2 * SIDE, 2 * SIDE))
            image.load()
            grey = reading.turn_upright(image, turned)
            if turned in (5, 6, 7, 8):  # on its side
                width, height = height, width
        else:
            deep = reading.read_deep(image)
            brightest = 0 if deep is None else max(reading.find_brightest(deep), 1)
            colour = reading.convert_image(image, deep, white=white)
            width, height = colour.size
            if small:  # too small to compare, so that only the very same pixels are found
                pixels = f"{width}x{height} {hashlib.sha256(colour.tobytes()).hexdigest()}"
            grey = colour.convert("L")
        thumbnail = grey.resize((SIDE, SIDE), Image.Resampling.BOX)
        blank = _is_blank(thumbnail, grey)
        if blank:  # colours of one brightness are the same grey
            bands = reading.read_image(io.BytesIO(content), white=white).split()
            blank = all(_is_blank(band.resize((SIDE, SIDE), Image.Resampling.BOX), band) for band in bands)
        remarks = _remark(path, image, format)  # at last: where a later frame is damaged, the first is lost with it
    if turned != 1:
        remarks.append(("EXIF rotation", "it is turned, or mirrored, as its EXIF data say; some programs do not"))
    if blank:
        scale = f" (its values of 16 bits reach {brightest}, and {white} is white)" if brightest else ""
        remarks.append(("blank", f"every pixel has nearly the same colour{scale}: there is nothing to learn from"))
    if 4 * brightest > 5 * white:
        remarks.append(("too bright", f"its values reach {brightest}, and {white} is white in this set"))
    sha256, comparable = hashlib.sha256(content).hexdigest(), not small and not blank
    opened = _Opened(tuple(remarks), width, height, sha256, pixels, comparable, format, brightest)
    return opened, np.asarray(thumbnail)


def _remark(path: str, image: Image.Image, format: str) -> list[tuple[str, str]]:
    """Returns problem and reason of what is worth knowing about an opened image."""
    remarks, extension = [], os.path.splitext(path)[1].lower()
    meant = Image.registered_extensions().get(extension, "")
    if extension and meant != format and (meant, format) != ("MPO", "JPEG"):
        remarks.append(("wrong extension", f"its content is {format}: it is read as that, other programs may fail"))
    with suppress(Exception):  # a later frame is damaged, and the first may be whole
        if getattr(image, "is_animated", False) and image.format != "MPO":  # two lenses of one telephone
            remarks.append(("animation", f"it has {image.n_frames} frames or pages, and only the first is used"))
    return remarks


def _is_blank(thumbnail: Image.Image, image: Image.Image) -> bool:
    """Tells whether nothing is seen: not in the means of 32x32 fields, and no small thing within one of them."""
    low, high = thumbnail.getextrema()
    if high - low > 3:
        return False
    shares = np.cumsum(image.histogram()) / (image.width * image.height)
    return np.searchsorted(shares, 0.9995) - np.searchsorted(shares, 0.0005) <= 32


_FOREIGN = {
    "a HEIC photo, which is not read: convert it to JPEG": (b"ftyphe", b"ftypmif1"),
    reading.RAW: (b"ftypcrx", b"fujifilmccd-raw", b"iiro\x08\0", b"iirs\x08\0", b"iiu\0\x18\0\0\0"),
    "a PDF document: export its pages as PNG": (b"%pdf",),
    "an SVG drawing: export it as PNG": (b"<svg",),
    "a web page, as a failed download leaves behind": (b"<html", b"<!doctype html"),
    "a Git LFS pointer and not the image itself: run git lfs pull": (b"version https://git-lfs",),
}
"""What a file is that is no image, by what stands near its beginning, in lower case."""

_STARTS = rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II[*+]\0|MM\0[*+]|RIFF....WEBP|....ftypavi[fs]"


def explain(error: Exception, path: str, content: bytes = b"") -> tuple[str, str]:
    """Returns the problem (a key of `KINDS`) and the reason why a file of this content raised this error."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "missing file", "it has disappeared since the folder was listed"
    if isinstance(error, PermissionError):
        return "no permission", "this account may not read it"
    if isinstance(error, (reading.TooLarge, MemoryError, Image.DecompressionBombError)):
        return "too large", message
    if isinstance(error, reading.Unsupported):
        return "unsupported", message
    if isinstance(error, OSError) and error.errno is not None:
        return "damaged", f"it cannot be read: {error.strerror or message}"
    if not content:  # it was not read as a whole
        with suppress(OSError), open(resolve_path(path), "rb") as file:
            content = file.read(512)
    if not content:
        return "empty file", "it has 0 bytes"
    if isinstance(error, UnidentifiedImageError):
        if re.match(_STARTS, content, re.DOTALL):
            return "damaged", "it starts like an image, but the rest is not one"
        start = content[:512].lower()
        foreign = (reason for reason, magics in _FOREIGN.items() if any(magic in start for magic in magics))
        return "not an image", next(foreign, f"it is in none of the formats {', '.join(reading.FORMATS)}")
    if "truncated" in message.lower() or "not enough" in message.lower() or isinstance(error, EOFError):
        return "truncated", f"the file is cut off: {message}"
    return "damaged", f"it cannot be decoded: {message}"


# ---- all files


def _find_shortcuts(images: pd.DataFrame) -> list[_Finding]:
    """Returns a finding for each property of the files that sets a class apart from the others (`SHORTCUT`)."""
    bits, classes, findings = reading.find_white(images).bit_length(), images.groupby("label").indices, []
    depths = {0: "8 bits", 1: f"at most {bits - 2} bits", 2: f"{bits} bits"}  # fewer: of another detector
    kinds = {
        "bit depth": [
            depths[(value > 0) + (value.bit_length() > bits - 2)] for value in images["brightest"].tolist()
        ],
        "file format": images["format"].tolist(),
        "size (root of width x height)": np.sqrt(images["width"] * images["height"]),
        "shape (width / height)": images["width"] / images["height"],
    }
    for name, values in kinds.items() if len(classes) > 1 else ():
        names, values = np.unique(values, return_inverse=True)
        exact, telling = names.dtype.kind == "U", []
        for label, own in classes.items():
            mine = np.sort(values[own])
            low, high = mine[len(mine) // 20], mine[-1 - len(mine) // 20]
            if exact:
                low = high = np.bincount(mine).argmax()
            has = (values >= low) & (values <= high)  # the most frequent value, or a class's central 90 %
            inside, everywhere = int(has[own].sum()), int(has.sum())
            share, other = inside / len(own), (everywhere - inside) / (len(values) - len(own))
            if share - other <= SHORTCUT:
                continue
            from scipy.stats import hypergeom  # here: it takes a second, and ordinary sets do not need it

            # Fisher's exact test, corrected for the number of classes, properties and ranges, rules chance out
            chance = hypergeom.sf(inside - 1, len(values), everywhere, len(own))
            if chance * len(classes) * len(kinds) * (1 if exact else len(own) ** 2) < 0.001:
                usual = str(names[low]) if exact else f"a {name} of {names[low]:.4g} to {names[high]:.4g}"
                told = f"{100 * share:.0f} % of its images have {usual}, {100 * other:.0f} % of the others"
                reason = f"{told}: a classifier could recognise this class by its {name} alone"
                telling.append((share - other, _Finding("shortcut", reason, label=label)))
        if telling:
            findings.append(max(telling, key=lambda one: one[0])[1])
    return findings


def _find_small(images: pd.DataFrame) -> list[_Finding]:
    shorter = images[["width", "height"]].min(axis=1)
    usual, findings = shorter.median(), []
    for row in images[(shorter < usual / 8) | (shorter < 4)].itertuples():
        reason = f"{row.width} x {row.height} pixels, where the shorter side is usually {usual:.0f}"
        findings.append(_Finding("too small", reason, row.path, row.label, row.split))
    return findings


def _find_duplicates(
    images: pd.DataFrame, similar: np.ndarray, leaving: set[str], *, join: bool
) -> tuple[pd.DataFrame, list[_Finding]]:
    """Returns the images, with `join` near-duplicates in groups; and a finding for each image like another."""
    copies = np.concatenate([_links(images["sha256"]), _links(images["pixels"]), _same_pixels(images, similar)])
    alike, grouped = np.concatenate([copies, similar[:, :2]]), _links(images["group"])
    copy, like, together, apart = (
        group_pairs(len(images), pairs)
        for pairs in (copies, alike, np.concatenate([alike, grouped]), np.concatenate([copies, grouped]))
    )
    table = images.assign(group=_group_names(images, together), copy=copy, like=like, together=together)
    if join:  # what is left out anyhow costs no other image its place
        table = table[~table["path"].isin(leaving)]
    images = images.assign(group=_group_names(images, together if join else apart))
    return images, _compare(table[table["together"].duplicated(keep=False)], similar)


def _links(names: pd.Series) -> np.ndarray:
    """Returns pairs of rows, int64 (pairs, 2), that connect the rows of each name; "" is none."""
    names = names[(names != "") & names.duplicated(keep=False)]
    rows = names.index.to_series()
    return np.stack([rows.groupby(names).transform("first"), rows], axis=1).astype("int64")


def _same_pixels(images: pd.DataFrame, similar: np.ndarray) -> np.ndarray:
    """Returns those of the pairs that are the same to the last bit, once decoded: other metadata, another format."""
    sizes, paths, white = images[["width", "height"]].to_numpy(), images["path"].tolist(), reading.find_white(images)

    def equal(pair: np.ndarray) -> bool:
        files = (reading.read_image(paths[row], white=white) for row in pair)  # one by one: large ones are many bytes
        try:
            return len({hashlib.sha256(image.tobytes()).digest() for image in files}) == 1
        except (OSError, ValueError):  # changed since it was checked: whoever reads it next will say so
            return False

    one, other, bits = similar.T
    pairs = similar[(bits <= 32) & (sizes[one] == sizes[other]).all(axis=1), :2]
    return pairs[np.fromiter(in_parallel(equal, pairs, title="comparing pixels"), bool, len(pairs))]


def _group_names(images: pd.DataFrame, together: np.ndarray) -> pd.Series:
    """Returns each image's group: a given name, else the first path of those that it is like, else ""."""
    joined = pd.Series(together, images.index)
    joined = joined[joined.duplicated(keep=False)]
    given = images.loc[joined.index, "group"]
    likeness = _LIKE + images.loc[joined.index, "path"].groupby(joined).transform("min")
    names = given.where(given != "").groupby(joined).transform("min").fillna(likeness)
    return names.reindex(images.index).fillna(images["group"])


def _compare(table: pd.DataFrame, similar: np.ndarray) -> list[_Finding]:
    """Returns the findings about images that must stay together: for each the first that applies."""
    # copy, like and together are numbers: of the same image, of a chain of near-duplicates, of all that stay together
    table = table.assign(row=table.index, rank=table["split"].map(_PRECEDENCE))
    torn = table.groupby("copy")["label"].transform("nunique") > 1
    labels = table[torn].drop_duplicates(["copy", "label"]).groupby("copy").head(2)
    labels = table[torn].merge(labels, on="copy", suffixes=("", "_other"))
    labels = labels[labels["label"] != labels["label_other"]].set_index("row")["row_other"]
    staying = table[~torn]  # images with two labels are left out, and cost no other image its place
    rank, label, copy = staying["rank"], staying["label"], staying["copy"]
    best = staying.sort_values("rank", ascending=False, kind="stable")
    # of each row another one: the first of the highest part in all that it belongs to, and those it is like
    original, chain, group = (best.groupby(name)["row"].transform("first") for name in ("copy", "like", "together"))
    both_ways = np.stack([similar, similar[:, [1, 0, 2]]], axis=1).reshape(-1, 3)
    both_ways = both_ways[np.isin(both_ways[:, :2], staying.index).all(axis=1)]
    one, other, _ = both_ways[np.argsort(both_ways[:, 2], kind="stable")].T
    near = pd.Series(other, one)[copy.loc[one].to_numpy() != copy.loc[other].to_numpy()]
    earlier = near[near < near.index]

    def across(others: pd.Series) -> pd.Series:
        mine, theirs = rank.loc[others.index].to_numpy(), rank.loc[others].to_numpy()
        return others[(mine >= 0) & (theirs > mine)]

    rows, found = {row.row: row for row in table.itertuples()}, {}
    for problem, reason, others in (
        ("two labels", "the same image is also filed under {1.label!r}: one is wrong", labels),
        ("duplicate across parts", "the same image is in the given part {1.split}", across(original)),
        ("near-duplicate across parts", "nearly the same image is in the given part {1.split}", across(near)),
        ("near-duplicate across parts", "near-duplicates link it to the given part {1.split}", across(chain)),
        ("group across parts", "its group {0.group!r} is also in the given part {1.split}", across(group)),
        ("duplicate", "the same image again", original[original != original.index]),
        (
            *("similar, two labels", "nearly the same image is filed under {1.label!r}"),
            earlier[label.loc[earlier.index].to_numpy() != label.loc[earlier].to_numpy()],
        ),
        ("near-duplicate", "nearly the same image", earlier),
    ):
        for row, other in others[~others.index.duplicated()].items():
            if row not in found:
                one, two = rows[row], rows[other]
                text = reason.format(one, two)
                found[row] = _Finding(problem, text, one.path, one.label, one.split, two.path, one.group)
    return list(found.values())


def _count_classes(images: pd.DataFrame, classes: list[str], problems: pd.DataFrame) -> list[_Finding]:
    """Returns findings about whole classes, among the images that are left."""
    shortages = find_shortages(images)
    shortages |= dict.fromkeys(set(classes) - set(images["label"]), "no usable image")
    findings, counts, alike = [], images["label"].value_counts(), {}
    for label in classes:
        alike.setdefault(fold_name(label), []).append(label)
        if (words := find_words(label)) and words <= PART_WORDS:
            reason = "it was read as a class: if it is a part of the data, put its images into class folders"
            findings.append(_Finding("named like a part", reason, label=label))
    for label, *others in (labels for labels in alike.values() if len(labels) > 1):
        found = " and ".join(f"{name!r} with {counts.get(name, 0)} images" for name in (label, *others))
        reason = f"{found}: if they are one class, give them one name"
        findings.append(_Finding("two spellings", reason, label=label))
    for label, reason in sorted(shortages.items()):
        lost = problems[(problems["label"] == label) & (problems["action"] == "left out")]
        if len(lost):
            first = lost.iloc[0]
            reason += f"; left out: {len(lost)}, for example {first['path']} ({first['problem']}: {first['reason']})"
        findings.append(_Finding("too few images", reason, label=label))
    learn = images[images["split"].isin(["", "train"])]["label"].value_counts().sort_index()
    for label, count in learn[learn < FEW_IMAGES].items():
        if label not in shortages:
            reason = f"{count} images to learn from, fewer than {FEW_IMAGES}"
            findings.append(_Finding("few images", reason, label=label))
    if len(learn) > 1 and learn.max() >= IMBALANCE * learn.min():
        reason = (
            f"{learn.min()} images, {learn.max() / learn.min():.0f} times fewer than {learn.idxmax()!r} with "
            f"{learn.max()}: the accuracy hardly shows how well it is recognised, and "
            f'class_weight="balanced" in 02 to 04 lets it count as much in training'
        )
        findings.append(_Finding("imbalance", reason, label=learn.idxmin()))
    return findings
