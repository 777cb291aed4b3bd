"""Images without labels, to be pretrained on: a folder, with folders in it or not."""

from pathlib import Path

import numpy as np
import pandas as pd

from helpers import resolve_path
from helpers.data.checks import check_images
from helpers.data.sources import COLUMNS, list_files
from helpers.data.tables import load_images


def find_unlabelled(
    source: str | Path, *, tested_by: str | Path | None = None, held_out: float = 0.1, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the images below a folder that can be learned from without labels, and what is wrong with the others.

    The images are as `load_pixels` takes them, label always "", split "train" or "validation"; the problems are as
    `check_images` returns them.

    Args:
        source: a folder, with folders in it or not, or an archive of one. Names of folders mean nothing here.
        tested_by: the `images.csv` of a run. Its test images, their copies and near-duplicates are left out: what a
            classifier is tested on must not be learned from, not even without labels. None for no such run.
        held_out: share of the images in validation, in (0, 1), but at least two. Near-duplicates come into one part.
        seed: of the division.
    """
    source = resolve_path(source)
    if not source.exists():
        raise FileNotFoundError(f"Expected a folder of images. There is no {source}.")
    tested = set()
    if tested_by:
        known = load_images(resolve_path(tested_by))
        tested = set(known.loc[known["split"] == "test", "path"])
    found = [(path, "", "train", "", problem, reason) for path, problem, reason in list_files(source)]
    rows = [row for row in found if row[0] not in tested] + [(path, "", "test", "", "", "") for path in tested]
    images, problems = check_images(pd.DataFrame(sorted(rows), columns=list(COLUMNS), dtype="str"))
    problems = problems[problems["path"] != ""].reset_index(drop=True)  # the others are about classes
    left_out = problems.loc[problems["action"] == "left out", "path"]
    images = images[~images["path"].isin(left_out) & (images["split"] != "test")]
    groups = images["group"].where(images["group"] != "", images["path"])
    sizes = groups.value_counts().sort_index().sample(frac=1, random_state=seed)
    wanted, validation = max(2, round(held_out * len(images))), set()
    for group, size in sizes.items():
        if size <= wanted:
            validation.add(group)
            wanted -= size
    split = np.where(groups.isin(validation), "validation", "train")
    if min((split == part).sum() for part in ("train", "validation")) < 2:
        raise ValueError(
            f"Expected at least four images that differ. {source} has {len(found)} files, and {len(images)} images "
            f"that can be learned from."
        )
    return images.assign(split=split).reset_index(drop=True), problems
