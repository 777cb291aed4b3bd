"""Which network? Several of them on the same images, by what their frozen features know: `make compare`.

A network's features are computed once, and a linear head is fitted at each of its cut points, cross-validated on the
same folds for all networks. Test images have no part in it. What is computed is kept: `make run` with the recommended
network finds its features again.
"""

import argparse
import difflib
import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from helpers import ROOT, resolve_path, shown_path, wrapped
from helpers.data import (
    check_images,
    encode_labels,
    exclude_problems,
    find_images,
    load_pixels,
    open_data,
    save_images,
    save_problems,
    split_images,
)
from helpers.evaluation.intervals import mean_interval
from helpers.notebook_run import Run
from helpers.parameters import Parameter, declared_parameters, resolve_from_cwd, validate_parameters
from helpers.report.run_folder import make_assignments
from helpers.run import data_name, plain_name
from helpers.study.trials import Trial, Trials

COLUMNS = ("network", "accuracy", "log_loss", "behind", "low", "high", "tied", "cut", "ms_per_image", "parameters")
COLUMNS += ("image_size", "problem")


@dataclass(frozen=True)
class Candidate:
    """A network to compare: its name in the list, and the parameters of 02 that it stands for."""

    name: str
    backbone: str
    weights: str = "imagenet"
    preprocessing: str = "auto"

    @property
    def trial(self) -> Trial:
        """What identifies its results: also the content of local files, as a number."""
        files = [path for path in map(resolve_path, (self.backbone, self.weights)) if path.is_file()]
        content = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        number = int(content[:12], 16) if files else 0
        return Trial("network", self.backbone, self.weights, self.preprocessing, seed=number)


def read_candidates(text: str, here: Path = ROOT) -> list[Candidate]:
    """Returns the networks that a text names: "MobileNetV2, ResNet50=resnet.weights.h5, own.keras@caffe, hub:PRESET".

    Behind a "=" there is a weights file, or None for random weights, and behind an "@" the preprocessing that a file
    of one's own expects, if it does not say; relative paths start from `here`. A ValueError
    names what is wrong: fewer than two networks, one that is named twice, or an unknown one, with the nearest name.
    """
    from helpers.backbones.loading import application_names, existing_file

    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        rest, _, preprocessing = part.partition("@")
        name, _, weights = rest.partition("=")
        name = resolve_from_cwd("backbone", name.strip(), here)
        weights = resolve_from_cwd("weights", weights.strip() or "imagenet", here)
        if name.endswith(".keras"):
            existing_file("backbones", name)
        elif not name.startswith("hub:") and name not in (known := application_names()):
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ValueError(f"There is no network {name} in keras.applications. Did you mean {nearest}?")
        if weights not in ("imagenet", "None"):
            existing_file("backbones", weights)
        found.append(Candidate(part, name, weights, preprocessing.strip() or "auto"))
    trials = [candidate.trial for candidate in found]
    if twice := sorted({candidate.name for candidate in found if trials.count(candidate.trial) > 1}):
        raise ValueError(f"Expected each network once. Received {', '.join(twice)} more than once.")
    if len(found) < 2:
        raise ValueError(f'Expected two networks or more, as in BACKBONES="MobileNetV2,ResNet50". Received {text!r}.')
    return found


def rank_networks(
    images: pd.DataFrame,
    candidates: list[Candidate],
    *,
    file: str | Path,
    resize: str = "crop",
    image_size: int = 0,
    class_weight: str = "",
    seed: int = 0,
    cluster: str = "",
) -> pd.DataFrame:
    """Returns how well a linear head does on each network's frozen features, the best network first.

    Accuracy and log-loss are cross-validated within all images that are not test images. If interrupted, the same
    call resumes; networks that failed are tried again.

    Args:
        images: the table of 01 (`split_images`).
        candidates: see `read_candidates`.
        file: where each network's results are kept as they come, and `cluster`: who computes them (`Trials`).
        resize, class_weight, seed: as in 02; image_size: in pixels, 0 for each network's own.

    Returns:
        A row for each network: network, accuracy and log_loss at the cut that 02 would choose; behind, by how much
        the log-loss is above the best network's, a mean over images, with its 95 % interval low to high; tied (bool):
        whether that interval holds 0; cut, the first stage that is left out; ms_per_image, what the forward pass took
        here; parameters and image_size (pixels); and problem, "" or why there are no results.
    """
    from helpers.training.probing import ROUGHLY  # here: TensorFlow takes seconds, and refusals need none

    settings = {"images": _digest(images), "resize": resize, "image_size": image_size, "class_weight": class_weight}
    settings |= {"seed": seed, "tolerance": ROUGHLY}
    trials = Trials(file, settings=settings, cluster=cluster, failed_again=True)
    work = partial(_probe, images, resize, image_size, class_weight, seed)
    results = trials.run([candidate.trial for candidate in candidates], work, title="networks")
    return _table({candidate.name: results[candidate.trial] for candidate in candidates})


def _digest(images: pd.DataFrame) -> str:
    """Returns what tells these images, labels and parts from others."""
    return hashlib.sha256(images[["sha256", "label", "split"]].to_csv(index=False).encode()).hexdigest()[:16]


def _probe(images: pd.DataFrame, resize: str, image_size: int, class_weight: str, seed: int, trial: Trial) -> dict:
    """Returns what the best head on a network's features reaches; for the trial see `Candidate`."""
    from helpers.backbones import load_backbone
    from helpers.training import set_seed
    from helpers.training.probing import probe_all

    set_seed(seed)  # of random weights, as in 02
    own = {"weights": trial.cut, "preprocessing": trial.stage}
    network = load_backbone(trial.arm, **own, image_size=image_size)
    size = network.input_shape[1:3]
    pixels, (labels, _) = load_pixels(images, image_size=size, resize=resize), encode_labels(images)
    labels.pop("test")  # whose features are computed, since 02 needs them, and not looked at
    head, cut, seconds = probe_all(network, pixels, labels, class_weight=class_weight)
    return {
        "outcome": "probed",
        "cut": cut,
        "log_loss": head.losses_[head.C_],
        "losses": [round(float(loss), 5) for loss in head.held_out_losses_],
        "accuracy": float(head.held_out_correct_.mean()),
        "ms_per_image": 1000 * seconds / len(images),
        "parameters": network.count_params(),
        "image_size": size[0],
    }


def _table(results: dict[str, dict]) -> pd.DataFrame:
    """Returns the table of `rank_networks` from each network's results."""
    probed = {name: result for name, result in results.items() if "losses" in result}
    rows = []
    best = min(probed, key=lambda name: probed[name]["log_loss"]) if probed else None
    for name, result in results.items():
        if name not in probed:
            rows.append({"network": name, "tied": False, "problem": _reason(result["outcome"])})
            continue
        differences = np.subtract(result["losses"], probed[best]["losses"])
        behind, low, high = (0.0, 0.0, 0.0) if name == best else mean_interval(differences)
        row = {column: result[column] for column in COLUMNS if column in result}
        row |= {"network": name, "behind": behind, "low": low, "high": high}
        rows.append(row | {"tied": low <= 0, "problem": ""})
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("log_loss", ignore_index=True)


def _reason(outcome: str) -> str:
    """Returns why a network failed: the error's message, or its type if it has none."""
    _, kind, message = outcome.split(": ", 2)
    return message or kind


def recommend(ranked: pd.DataFrame) -> str:
    """Returns the network to take, the cheapest of those tied with the best in `rank_networks`; "" for none."""
    tied = ranked[ranked["tied"].astype(bool)]
    return tied.loc[tied["ms_per_image"].idxmin(), "network"] if len(tied) else ""


def describe_ranking(ranked: pd.DataFrame) -> str:
    """Returns the ranking as a table for a terminal, with reasons for networks without results."""
    formats = {"accuracy": "{:.3f}", "log_loss": "{:.3f}", "ms_per_image": "{:.1f}", "parameters": "{:,.0f}"}
    rows = []
    for row in ranked[ranked["problem"] == ""].to_dict("records"):
        shown = {"network": row["network"]} | {name: form.format(row[name]) for name, form in formats.items()}
        behind = "{behind:+.3f} ({low:+.3f} to {high:+.3f})".format(**row) if row["behind"] else "the best"
        rows.append(shown | {"cut": row["cut"], "behind": behind, "tied": "yes" if row["tied"] else "no"})
    table = [pd.DataFrame(rows).to_string(index=False)] if rows else []
    problems = [f"{row.network}: {row.problem}" for row in ranked[ranked["problem"] != ""].itertuples()]
    return "\n".join(table + problems)


# ---- the command

_BACKBONES = Parameter("backbones", "", ("str",), "NAME,NAME=WEIGHTS,own.keras,...: two networks or more")
_TAKEN = ("data", "on_problem", "validation_fraction", "test_fraction", "images_per_class", "seed")
_TAKEN += ("image_size", "resize", "class_weight", "cluster")


def _declared() -> dict[str, Parameter]:
    """Returns the parameters, as the notebooks declare them."""
    import nbformat

    files = [
        ROOT / "notebooks" / f"{name}.ipynb"
        for name in ("01_load_data", "02_transfer_learning", "04_freeze_or_fine_tune")
    ]
    known = {name: p for file in files for name, p in declared_parameters(nbformat.read(file, as_version=4)).items()}
    return {"backbones": _BACKBONES} | {name: known[name] for name in _TAKEN}


def _prepare(values: dict, folder: Path) -> pd.DataFrame:
    """Returns the checked, split table of images, as 01 makes it; both tables are saved in the folder."""
    checked, problems = check_images(find_images(open_data(values["data"])), on_problem=values["on_problem"])
    shares = {name: values[name] for name in ("validation_fraction", "test_fraction", "images_per_class", "seed")}
    images = split_images(exclude_problems(checked, problems), **shares)
    folder.mkdir(parents=True, exist_ok=True)
    save_images(images, folder / "images.csv")  # refuses to replace another split
    save_problems(problems, folder / "problems.csv")
    return images


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 no network could be used, 2 refused before the start, 130 interrupted."""
    declared = _declared()
    parser = argparse.ArgumentParser(
        prog="python -m helpers.networks",
        description=__doc__,
        epilog="\n".join(["parameters:", *(f"  {parameter}" for parameter in declared.values())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", "--name", type=plain_name, help="results go to runs/NAME")
    parser.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), action="append", default=[], help="a parameter")
    asked = parser.parse_args(arguments)
    try:
        given = validate_parameters(dict(asked.p), declared)
        given = {name: resolve_from_cwd(name, value, Path.cwd()) for name, value in given.items()}
        values = {name: parameter.default for name, parameter in declared.items()} | given
        candidates = read_candidates(values["backbones"], Path.cwd())
        folder = ROOT / "runs" / (asked.name or f"{data_name(values['data'])}-networks")
        images = _prepare(values, folder)
        options = {name: values[name] for name in ("resize", "image_size", "class_weight", "seed", "cluster")}
        with FileLock(folder / ".lock", timeout=0):
            ranked = rank_networks(images, candidates, file=folder / "networks.jsonl", **options)
    except Timeout:
        print(
            f"Another process is writing to {shown_path(folder)} at this moment: wait for it, or choose a NAME.",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError) as error:
        print(wrapped(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to resume.", file=sys.stderr)
        return 130
    Run(folder).save("networks.csv", ranked)
    print(describe_ranking(ranked), f"\nTable: {shown_path(folder / 'networks.csv')}", sep="\n")
    if not (taken := recommend(ranked)):
        return 1
    (candidate,) = [candidate for candidate in candidates if candidate.name == taken]
    alike = int(ranked["tied"].sum())
    why = f"the cheapest of {alike} that cannot be told apart" if alike > 1 else "clearly better than the others"
    if (ranked["problem"] == "").sum() == 1:
        why = "the only one that could be used"
    print(wrapped(f"Recommended: {taken}, {why}. To go on, without computing its features again:"))
    same = {name: value for name, value in given.items() if name not in ("backbones", "cluster")}
    chosen = {name: getattr(candidate, name) for name in ("backbone", "weights", "preprocessing")}
    chosen = {name: value for name, value in chosen.items() if value not in ("imagenet", "auto")}
    print("  make run " + make_assignments(same | chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
