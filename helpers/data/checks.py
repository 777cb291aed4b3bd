"""Every file is opened once, and what was found is a table: one row per finding, with what the run does about it."""

import hashlib
import io
import os
import re
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from helpers import resolve_path, write_atomically
from helpers.data.duplicates import SIDE, Thumbnails, find_similar, group_pairs
from helpers.data.names import PART_WORDS, find_words, fold_name
from helpers.data.parallel import in_parallel
from helpers.data.reading import (
    FORMATS,
    FULL_WHITE,
    RAW,
    TooLarge,
    Unsupported,
    choose_white,
    convert_image,
    find_brightest,
    find_orientation,
    find_white,
    open_image,
    read_deep,
    read_file,
    read_image,
    taking_turns,
    turn_upright,
)
from helpers.data.splits import find_shortages
from helpers.data.tables import to_csv

COLUMNS = ("path", "label", "split", "severity", "problem", "action", "reason", "other", "group")

POLICIES = ("exclude", "stop", "keep")


class Kind(NamedTuple):
    """What is done about a problem."""

    severity: str
    action: str  # under "exclude"; and what "keep" keeps is what is "left out" although it can be used
    usable: bool


_KINDS = (
    (
        *("error", "left out", False),
        "not an image; empty file; truncated; damaged; too large; unsupported; no permission; missing file; "
        "broken link; not a file; bad name; outside; no path; no label; two parts",
    ),
    ("error", "stops the run", False, "too few images"),
    # what can be used, and would spoil the answer
    ("error", "left out", True, "two labels"),
    (
        *("warning", "left out", True),
        "duplicate across parts; near-duplicate across parts; group across parts; duplicate; blank; too small",
    ),
    # what a person should look at
    ("warning", "kept together", True, "similar, two labels"),
    ("warning", "kept", True, "two spellings; named like a part; shortcut; too bright; too dark; few images"),
    ("warning", "ignored", True, "empty class"),
    # what is good to know
    ("note", "kept together", True, "near-duplicate"),
    ("note", "kept", True, "imbalance; bit depth; animation; wrong extension; EXIF rotation"),
    ("note", "ignored", True, "repeated row; stray file"),
)

KINDS = {problem: Kind(*kind) for *kind, problems in _KINDS for problem in problems.split("; ")}
"""Every problem, from the worst to the most harmless: its severity, and what is done about it."""

FEW_IMAGES = 10
"""Images to learn from, below which a class is reported."""

IMBALANCE = 5
"""How many times as many images the largest class has as the smallest, from which on it is reported."""

SHORTCUT = 0.75
"""How much more often a property has to be seen in one class than in the others, as a share, to be reported."""

_PRECEDENCE = {"train": 0, "validation": 1, "test": 2}

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
        found: from `find_images`: columns path, label, split, group, problem, reason.
        on_problem: "exclude" leaves out what cannot be used or would spoil the answer, "keep" only what cannot be
            decoded, and near-duplicates may land in different parts. "stop" lets `exclude_problems` raise.
        white: the value that becomes 255 in images of 16 bits, 1 to 65535; None for the one that suits the set.

    Returns:
        The images, with the added columns width and height (pixels), sha256 (of the file) and, if there are images of
        16 bits, white; and with copies and near-duplicates joined in `group`, to stay in one part. And the problems,
        worst first: `COLUMNS`; `other` is the path of the image that it is like.
    """
    check_policy(on_problem)
    known = found[found["problem"] != ""]
    images, findings = found[found["problem"] == ""].drop(columns=["problem", "reason"]), []
    with closing(Thumbnails()) as thumbnails:
        images, comparable = _open_all(images.reset_index(drop=True), thumbnails, findings, white)
        similar = find_similar(thumbnails.array(), comparable)
    findings += _find_small(images)
    images = _find_duplicates(images, similar, findings, join=on_problem != "keep")
    # what the source refused was not opened: "keep" cannot keep it
    known = _decide(known, "exclude" if on_problem == "keep" else on_problem)
    opened = _decide(pd.DataFrame(findings, columns=_Finding._fields), on_problem)
    problems = pd.concat([known, opened], ignore_index=True).fillna("")
    named = found["problem"].map(lambda problem: not problem or not KINDS[problem].usable).astype(bool)
    classes = sorted(set(found.loc[named, "label"]) - {""})
    counted = _count_classes(_without(images, problems), classes, problems)
    counted = _decide(pd.DataFrame(counted, columns=_Finding._fields), on_problem)
    problems = pd.concat([problems, counted], ignore_index=True).astype("str")
    order = problems["problem"].map({kind: rank for rank, kind in enumerate(KINDS)})
    problems = problems.assign(order=order).sort_values(["order", "path"], kind="stable", ignore_index=True)
    return images, problems[list(COLUMNS)]


def check_policy(on_problem: str) -> None:
    """Raises ValueError if the policy is none of `POLICIES`."""
    if on_problem not in POLICIES:
        raise ValueError(f'Expected `on_problem` to be "exclude", "stop" or "keep". Received {on_problem!r}.')


def _decide(problems: pd.DataFrame, on_problem: str) -> pd.DataFrame:
    """Returns the table with the columns severity and action."""
    kinds = [KINDS[problem] for problem in problems["problem"]]
    given_to_test = problems["problem"].eq("duplicate") & problems["split"].isin(["validation", "test"])
    actions = []
    for kind, given in zip(kinds, given_to_test, strict=True):
        lenient = given or (on_problem == "keep" and kind.usable and kind.action != "ignored")
        stops = on_problem == "stop" and kind.severity != "note"
        actions.append("stops the run" if stops else "kept" if lenient else kind.action)
    return problems.assign(severity=[kind.severity for kind in kinds], action=actions)


def _without(images: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    # by path, but not by rows about what was never opened: another row of a table may give the same file a label
    usable = problems["problem"].map(lambda problem: KINDS[problem].usable).astype(bool)
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
    problem: str = ""
    reason: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    pixels: str = ""  # a hash of them, of a small image
    thumbnail: Image.Image | None = None
    comparable: bool = False
    remarks: tuple = ()  # (problem, reason) of an image that can be used
    format: str = ""
    brightest: int = 0  # of 16 bits; 0 for an image of 8


def _open_all(
    images: pd.DataFrame, thumbnails: Thumbnails, findings: list, white: int | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Returns the images that can be decoded, measured, and which of them are to be compared: each content once."""
    paths, results = images["path"].tolist(), []
    for result in in_parallel(_open, paths, title="checking images"):
        if not result.problem:
            thumbnails.append(result.thumbnail)
        results.append(result._replace(thumbnail=None))
    usable = np.array([not result.problem for result in results], bool)
    deep = [row for row, result in enumerate(results) if result.brightest]
    if deep:  # only now it is known what is white in them
        reached = {paths[row]: results[row].brightest for row in deep}
        white = white or choose_white(list(reached.values()))
        place = usable.cumsum() - 1
        again = in_parallel(lambda row: _open(paths[row], white), deep, title="checking images of 16 bits")
        for row, result in zip(deep, again, strict=True):
            if not result.problem:
                thumbnails.replace(int(place[row]), result.thumbnail)
                results[row] = result._replace(thumbnail=None)
    for path, label, split, result in zip(paths, images["label"], images["split"], results, strict=True):
        told = [*result.remarks, (result.problem, result.reason)]
        if deep and 4 * result.brightest > 5 * white:
            told.append(("too bright", f"its values reach {result.brightest}, and {white} is white in this set"))
        findings += [_Finding(*one, path, label, split) for one in told if one[0]]
    images = images[usable].reset_index(drop=True)
    results = [result for result in results if not result.problem]
    for name, dtype in (("width", "int64"), ("height", "int64"), ("sha256", "str"), ("pixels", "str")):
        images[name] = pd.array([getattr(result, name) for result in results], dtype=dtype)
    if deep:
        images["white"] = white
        findings += _describe_depth(reached, white, len(results))
    findings += _find_shortcuts(images, results)
    comparable = np.array([result.comparable for result in results], bool) & ~images["sha256"].duplicated().to_numpy()
    return images, np.flatnonzero(comparable)


def _describe_depth(reached: dict[str, int], white: int, images: int) -> list[_Finding]:
    """Returns what to know of files with 16 bits; `reached` is the largest value of each, by path."""
    reason = f"{len(reached)} of {images} files have 16 bits: in each of them 0 is black and {white} is white"
    findings = [_Finding("bit depth", f"{reason}, by the largest values in the set")]
    if 4 * (half := np.median(list(reached.values()))) < white:
        reason = (
            f"half of the files with 16 bits reach {half:.0f} at most, less than a quarter of what is white in this "
            f"set, {white}, so they look dark: leave out the few that are brighter, such as "
            f"{max(reached, key=reached.get)}, if these are faulty or of another detector"
        )
        findings.append(_Finding("too dark", reason))
    return findings


def _open(path: str, white: int = FULL_WHITE) -> _Opened:
    content = b""
    try:
        content = read_file(path)
        return _measure(path, content, white)
    except Exception as error:  # Pillow's plugins raise many kinds; each is a row in the table, with its file
        return _Opened(*explain(error, path, content))


def _measure(path: str, content: bytes, white: int) -> _Opened:
    # Few calls that wait for Python's lock: with two threads, waiting took as long as decoding
    with open_image(io.BytesIO(content)) as image, taking_turns(image):
        format = "JPEG" if image.format == "MPO" else image.format
        remarks = [*_wrong_extension(os.path.splitext(path)[1].lower(), format), *_animation(image)]
        width, height = image.size
        turned = find_orientation(image)
        if turned != 1:
            remarks.append(("EXIF rotation", "it is turned, or mirrored, as its EXIF data say; some programs do not"))
        pixels, brightest, small = "", 0, min(width, height) < SIDE
        if format == "JPEG" and image.mode in ("RGB", "L") and not small:
            # All of the file is decoded, but only to grey and small: twice as fast, and enough to compare
            image.draft("L", (2 * SIDE, 2 * SIDE))
            image.load()
            grey = turn_upright(image, turned)
            if turned in (5, 6, 7, 8):  # on its side
                width, height = height, width
        else:
            deep = read_deep(image)
            if deep is not None:
                brightest = max(find_brightest(deep), 1)
            colour = convert_image(image, deep, white=white)
            width, height = colour.size
            if small:  # too small to compare, so that only the very same pixels are found
                pixels = f"{width}x{height} {hashlib.sha256(colour.tobytes()).hexdigest()}"
            grey = colour.convert("L")
        thumbnail = grey.resize((SIDE, SIDE), Image.Resampling.BOX)
        blank = _is_blank(thumbnail, grey) and _is_blank_in_colour(content, white)
    if blank:
        scale = f" (its values of 16 bits reach {brightest}, and {white} is white)" if brightest else ""
        remarks.append(("blank", f"every pixel has nearly the same colour{scale}: there is nothing to learn from"))
    sha256, comparable = hashlib.sha256(content).hexdigest(), not small and not blank
    measured = (width, height, sha256, pixels, thumbnail, comparable, tuple(remarks), format, brightest)
    return _Opened("", "", *measured)


def _animation(image: Image.Image) -> list[tuple[str, str]]:
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # two lenses of one telephone
            return [("animation", f"it has {image.n_frames} frames or pages, and only the first is used")]
    except Exception:  # a later frame is damaged: the first may be whole, and will be decoded next
        pass
    return []


def _wrong_extension(extension: str, format: str) -> list[tuple[str, str]]:
    meant = Image.registered_extensions().get(extension, "")
    if not extension or meant == format or (meant, format) == ("MPO", "JPEG"):
        return []
    return [("wrong extension", f"its content is {format}: it is read as that, other programs may fail")]


def _is_blank(thumbnail: Image.Image, image: Image.Image) -> bool:
    """Tells whether nothing is seen: not in the means of 32x32 fields, and no small thing within one of them."""
    low, high = thumbnail.getextrema()
    if high - low > 3:
        return False
    shares = np.cumsum(image.histogram()) / (image.width * image.height)
    return np.searchsorted(shares, 0.9995) - np.searchsorted(shares, 0.0005) <= 32


def _is_blank_in_colour(content: bytes, white: int) -> bool:
    image = read_image(io.BytesIO(content), white=white)  # colours of one brightness are the same grey
    return all(_is_blank(band.resize((SIDE, SIDE), Image.Resampling.BOX), band) for band in image.split())


_FOREIGN = (
    ((b"ftyphe", b"ftypmif1"), "a HEIC photo, which is not read: convert it to JPEG"),
    ((b"ftypcrx", b"fujifilmccd-raw", b"iiro\x08\0", b"iirs\x08\0", b"iiu\0\x18\0\0\0"), RAW),
    ((b"%pdf",), "a PDF document: export its pages as PNG"),
    ((b"<svg",), "an SVG drawing: export it as PNG"),
    ((b"<html", b"<!doctype html"), "a web page, as a failed download leaves behind"),
    ((b"version https://git-lfs",), "a Git LFS pointer and not the image itself: run git lfs pull"),
)

_STARTS = rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II[*+]\0|MM\0[*+]|RIFF....WEBP|....ftypavi[fs]"


def explain(error: Exception, path: str, content: bytes = b"") -> tuple[str, str]:
    """Returns the problem (a key of `KINDS`) and the reason why a file of this content raised this error."""
    message = " ".join(str(error).split()) or type(error).__name__
    for kinds, problem, reason in (
        (FileNotFoundError, "missing file", "it was there a moment ago, and is not any more"),
        (PermissionError, "no permission", "this account may not read it"),
        ((TooLarge, MemoryError, Image.DecompressionBombError), "too large", message),
        (Unsupported, "unsupported", message),
    ):
        if isinstance(error, kinds):
            return problem, reason
    if "PngImagePlugin.MAX_TEXT" in message:
        return "too large", "a PNG with more text in it than any picture needs: save it without metadata"
    if isinstance(error, OSError) and error.errno is not None:
        return "damaged", f"it cannot be read: {error.strerror or message}"
    if not content:  # it was not read as a whole
        with suppress(OSError), open(resolve_path(path), "rb") as file:
            content = file.read(512)
    if not content:
        return "empty file", "it has 0 bytes"
    if isinstance(error, UnidentifiedImageError):
        if re.match(_STARTS, content, re.DOTALL):
            return "damaged", "it begins like an image and does not go on like one"
        start = content[:512].lower()
        foreign = (reason for magics, reason in _FOREIGN if any(magic in start for magic in magics))
        return "not an image", next(foreign, f"its content is none of {', '.join(FORMATS)}")
    if "truncated" in message.lower() or "not enough" in message.lower() or isinstance(error, EOFError):
        return "truncated", f"the file is cut off: {message}"
    return "damaged", f"it cannot be decoded: {message}"


# ---- all files


def _find_shortcuts(images: pd.DataFrame, results: list[_Opened]) -> list[_Finding]:
    """Returns a finding for each property of the files that sets a class apart from the others (`SHORTCUT`).

    Fisher's exact test, corrected for the number of classes, properties and ranges, rules chance out. Ranges of sizes
    and shapes are those of a class's central 90 %.
    """
    width, height = (images[name].to_numpy("float64") for name in ("width", "height"))
    bits = find_white(images).bit_length()
    depths = {0: "8 bits", 1: f"at most {bits - 2} bits", 2: f"{bits} bits"}  # fewer: of another detector
    kinds = {
        "bit depth": [depths[(one.brightest > 0) + (one.brightest.bit_length() > bits - 2)] for one in results],
        "file format": [one.format for one in results],
        "size (root of width x height)": np.sqrt(width * height),
        "shape (width / height)": width / height,
    }
    classes, findings = images.groupby("label").indices, []
    for name, values in kinds.items() if len(classes) > 1 else ():
        names, values = np.unique(values, return_inverse=True)
        exact, best = names.dtype.kind == "U", (SHORTCUT, "", "")
        for label, own in classes.items():
            mine = np.sort(values[own])
            low, high = mine[len(mine) // 20], mine[-1 - len(mine) // 20]
            if exact:
                low = high = np.bincount(mine).argmax()
            has = (values >= low) & (values <= high)
            inside, everywhere = int(has[own].sum()), int(has.sum())
            share, other = inside / len(own), (everywhere - inside) / (len(values) - len(own))
            if share - other <= best[0]:
                continue
            from scipy.stats import hypergeom  # here: it takes a second, and ordinary sets do not need it

            chance = hypergeom.sf(inside - 1, len(values), everywhere, len(own))
            if chance * len(classes) * len(kinds) * (1 if exact else len(own) ** 2) < 0.001:
                usual = str(names[low]) if exact else f"a {name} of {names[low]:.4g} to {names[high]:.4g}"
                told = f"{100 * share:.0f} % of its images have {usual}, {100 * other:.0f} % of the others"
                best = (share - other, label, f"{told}: a classifier can tell it by its {name} alone")
        if best[1]:
            findings.append(_Finding("shortcut", best[2], label=best[1]))
    return findings


def _find_small(images: pd.DataFrame) -> list[_Finding]:
    shorter = images[["width", "height"]].min(axis=1)
    usual, findings = shorter.median(), []
    for row in images[(shorter < usual / 8) | (shorter < 4)].itertuples():
        reason = f"{row.width} x {row.height} pixels, where the shorter side is usually {usual:.0f}"
        findings.append(_Finding("too small", reason, row.path, row.label, row.split))
    return findings


def _find_duplicates(images: pd.DataFrame, similar: np.ndarray, findings: list, *, join: bool) -> pd.DataFrame:
    """Returns the images, with `join` near-duplicates in groups; adds a finding for each image like another."""
    count = len(images)
    small = _links(images["pixels"][images["pixels"] != ""])
    images = images.drop(columns="pixels")
    copies = np.concatenate([_links(images["sha256"]), small, _same_pixels(images, similar)])
    alike = np.concatenate([copies, similar[:, :2]])
    grouped = _links(images["group"][images["group"] != ""])
    together = group_pairs(count, np.concatenate([alike, grouped]))
    groups = {"copy": group_pairs(count, copies), "like": group_pairs(count, alike), "together": together}
    table = images.assign(group=_group_names(images, together), **groups)
    if not join:
        together = group_pairs(count, np.concatenate([copies, grouped]))
    images = images.assign(group=_group_names(images, together))
    if join:  # what is left out anyhow costs no other image its place
        leaving = {finding.path for finding in findings if finding.problem in ("blank", "too small")}
        table = table[~table["path"].isin(leaving)]
    table = table[table["together"].duplicated(keep=False)]
    rows = dict(zip(table.index.tolist(), table.itertuples(index=False), strict=True))
    partners = _nearest_first(similar)
    for members in table.groupby("together").groups.values():
        findings.extend(_compare(members.tolist(), rows, partners))
    return images


def _links(names: pd.Series) -> np.ndarray:
    """Returns a pair of rows, int64 (pairs, 2), for each row after the first with the same name."""
    names = names[names.duplicated(keep=False)]  # few, and the rest would cost memory
    rows = names.index.to_series()
    first = rows.groupby(names).transform("first")
    return np.stack([first, rows], axis=1).astype("int64")[(first != rows).to_numpy()]


def _same_pixels(images: pd.DataFrame, similar: np.ndarray) -> np.ndarray:
    """Returns those of the pairs that are the same to the last bit, once decoded: other metadata, another format."""
    sizes = images[["width", "height"]].to_numpy()
    one, other, bits = similar.T
    pairs = similar[(bits <= 32) & (sizes[one] == sizes[other]).all(axis=1), :2]
    paths = images["path"].tolist()
    white = find_white(images)
    same = in_parallel(lambda pair: _equal(*(paths[row] for row in pair), white), pairs, title="comparing pixels")
    return pairs[np.fromiter(same, bool, len(pairs))]


def _equal(one: str, other: str, white: int) -> bool:
    try:
        return _hash_pixels(one, white) == _hash_pixels(other, white)
    except (OSError, ValueError):  # gone since it was checked: whoever reads it next will say so
        return False


def _hash_pixels(path: str, white: int) -> bytes:  # one after the other: two large ones are many bytes
    return hashlib.sha256(read_image(path, white=white).tobytes()).digest()


def _group_names(images: pd.DataFrame, together: np.ndarray) -> pd.Series:
    """Returns each image's group: a given name, else the first path of those that it is like, else ""."""
    joined = pd.Series(together, images.index)
    joined = joined[joined.duplicated(keep=False)]
    given = images.loc[joined.index, "group"]
    likeness = _LIKE + images.loc[joined.index, "path"].groupby(joined).transform("min")
    names = given.where(given != "").groupby(joined).transform("min").fillna(likeness)
    return names.reindex(images.index).fillna(images["group"])


def _nearest_first(similar: np.ndarray) -> dict[int, list[int]]:
    partners: dict[int, list[int]] = {}
    for one, other, _ in similar[np.argsort(similar[:, 2], kind="stable")].tolist():
        partners.setdefault(one, []).append(other)
        partners.setdefault(other, []).append(one)
    return partners


def _compare(members: list[int], images: dict, partners: dict[int, list[int]]) -> list[_Finding]:
    """Returns the findings about images that must stay together: at most one for each.

    `members` are their rows, ascending. Of each row, `images` has path, label, split, group; copy and like, the same
    number for the same image and for a chain of near-duplicates; `partners` its near-duplicates, the nearest first.
    """
    labels: dict[int, dict[str, int]] = {}  # of each image: its labels, with the first row of each
    for row in members:
        labels.setdefault(images[row].copy, {}).setdefault(images[row].label, row)
    # images with two labels are left out, and cost no other image its place
    staying = [row for row in members if len(labels[images[row].copy]) == 1]
    rank = {row: _PRECEDENCE.get(images[row].split, -1) for row in staying}
    # the row of the highest part, the first of several: of each image, of each chain, and of all
    highest: dict[tuple, int] = {}
    for row in sorted(staying, key=lambda row: (-rank[row], row)):
        for key in (("copy", images[row].copy), ("like", images[row].like), ("group",)):
            highest.setdefault(key, row)
    findings = []
    for row in members:
        one = images[row]
        if found := _compare_one(row, images, labels[one.copy], partners.get(row, ()), rank, highest):
            problem, reason, other = found
            findings.append(_Finding(problem, reason, one.path, one.label, one.split, images[other].path, one.group))
    return findings


def _compare_one(row, images, labels, partners, rank, highest) -> tuple[str, str, int] | None:
    """Returns problem, reason and the row of the other image."""
    image = images[row]
    if len(labels) > 1:
        names = ", ".join(repr(label) for label in sorted(labels) if label != image.label)
        other = next(other for label, other in labels.items() if label != image.label)
        return "two labels", f"the same image is also filed under {names}: one is wrong", other
    near = [other for other in partners if other in rank and images[other].copy != image.copy]
    chain, group = [highest["like", image.like]], [highest["group",]]
    if rank[row] >= 0:
        for problem, words, others in (
            ("duplicate across parts", "the same image is in", [highest["copy", image.copy]]),
            ("near-duplicate across parts", "nearly the same image is in", near),
            ("near-duplicate across parts", "a series of nearly the same images leads into", chain),
            ("group across parts", f"its group {image.group!r} is also in", group),
        ):
            for other in others:
                if rank[other] > rank[row]:
                    return problem, f"{words} the given part {images[other].split}", other
    if row != (original := highest["copy", image.copy]):
        return "duplicate", "the same image again", original
    earlier = [other for other in near if other < row]
    for other in earlier:
        if images[other].label != image.label:
            reason = f"nearly the same image is filed under {images[other].label!r}"
            return "similar, two labels", reason, other
    return ("near-duplicate", "nearly the same image", earlier[0]) if earlier else None


def _count_classes(images: pd.DataFrame, classes: list[str], problems: pd.DataFrame) -> list[_Finding]:
    """Returns findings about whole classes, among the images that are left."""
    shortages = find_shortages(images)
    shortages |= dict.fromkeys(set(classes) - set(images["label"]), "no usable image")
    findings, counts, alike = [], images["label"].value_counts(), {}
    for label in classes:
        alike.setdefault(fold_name(label), []).append(label)
        if (words := find_words(label)) and words <= PART_WORDS:
            reason = "it is taken for a class: if it is a part of the data, its images have other classes"
            findings.append(_Finding("named like a part", reason, label=label))
    for label, *others in (labels for labels in alike.values() if len(labels) > 1):
        found = " and ".join(f"{name!r} with {counts.get(name, 0)} images" for name in (label, *others))
        reason = f"{found}: if they are one class, give them one name"
        findings.append(_Finding("two spellings", reason, label=label))
        for name in shortages.keys() & {label, *others}:
            shortages[name] += f"; perhaps {name!r} is meant by {(others[0] if name == label else label)!r}"
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
