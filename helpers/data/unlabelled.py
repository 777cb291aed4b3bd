"""Images without labels, to be pretrained on: a folder, with folders in it or not."""

from pathlib import Path

import numpy as np
import pandas as pd

from helpers import resolve_path
from helpers.data.checks import check_images
from helpers.data.sources import COLUMNS, list_files
from helpers.data.tables import load_images


def find_unlabelled(
    source: str | Path, *, besides: str | Path | None = None, held_out: float = 0.1, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the images below a folder that can be learned from without labels, and what is wrong with the others.

    Args:
        source: a folder, with folders in it or not, or an archive of one. Names of folders mean nothing here.
        besides: the `images.csv` of a run: whatever has the content of one of its test images is left out, for what a
            classifier is tested on must not be learned from, not even without labels. None for no such run.
        held_out: share of the images in validation, in (0, 1): about, since near-duplicates come into one part.
        seed: of the division, any integer of at least 0.

    Returns:
        The images, as `load_pixels` takes them: path, label (always ""), split (train or validation), group, width,
        height, sha256. And the problems, as `check_images` returns them: those found are left out.

    Raises:
        ValueError: `held_out` is out of range, fewer than two images differ, or an archive cannot be unpacked safely.
        FileNotFoundError: no such folder, or no such table.
        OSError: it may not be read.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"Expected `held_out` between 0 and 1, both excluded. Received {held_out}.")
    source = resolve_path(source)
    if not source.exists():
        raise FileNotFoundError(f"Expected a folder of images. There is no {source}.")
    known = load_images(besides) if besides else None
    rows = sorted((path, "", "", "", problem, reason) for path, problem, reason in list_files(source))
    images, problems = check_images(pd.DataFrame(rows, columns=list(COLUMNS), dtype="str"))
    problems = problems[problems["path"] != ""].reset_index(drop=True)  # the others are about classes
    images = images[~images["path"].isin(problems.loc[problems["action"] == "left out", "path"])]
    if known is not None:
        images = images[~images["sha256"].isin(known.loc[known["split"] == "test", "sha256"])]
    groups = images["group"].where(images["group"] != "", images["path"])
    if groups.nunique() < 2:
        raise ValueError(
            f"Expected at least two images that differ. {source} has {len(rows)} files, and {len(images)} images to "
            f"learn from."
        )
    sizes = groups.value_counts().sort_index().sample(frac=1, random_state=seed).cumsum()
    validation = sizes.index[: max(1, (sizes <= held_out * len(images)).sum())]
    split = np.where(groups.isin(validation), "validation", "train")
    return images.assign(split=split).reset_index(drop=True), problems
