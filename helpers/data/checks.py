"""Every file is opened once."""

import hashlib
import io
import re

import pandas as pd

from helpers import resolve_path
from helpers.data.parallel import in_parallel
from helpers.data.reading import read_image


def check_images(images: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the images that can be read, measured, and a table of the files that cannot.

    Every file is decoded once, in parallel.

    Returns:
        The readable images, with the added columns width and height (pixels, as a viewer shows the image)
        and sha256 (of the file's bytes); and a DataFrame of problems with the columns path, label, problem.

    Raises:
        ValueError: not one file can be read.
    """
    results = list(in_parallel(_check_image, images["path"].tolist(), title="checking images"))
    checked = images.assign(**pd.DataFrame(results, columns=["width", "height", "sha256", "problem"]))
    bad = checked["problem"] != ""
    problems = checked.loc[bad, ["path", "label", "problem"]].reset_index(drop=True)
    if bad.all():
        path, _, problem = problems.iloc[0]
        raise ValueError(
            f"Expected images. Received {len(problems)} files, none of which can be read: for example "
            f"{path}: {problem}."
        )
    kept = checked[~bad].drop(columns="problem").reset_index(drop=True)
    lost = set(zip(images["label"], images["split"], strict=True)) - set(
        zip(kept["label"], kept["split"], strict=True)
    )
    for label, part in sorted(lost):
        path, _, problem = problems[problems["label"] == label].iloc[0]
        raise ValueError(
            f"Not one of the files of class {label!r}{f' in {part}' if part else ''} can be read, for example "
            f"{path}: {problem}. Convert them, or remove the class."
        )
    return kept, problems


def _check_image(path: str) -> tuple[int, int, str, str]:
    try:
        content = resolve_path(path).read_bytes()
        image = read_image(io.BytesIO(content))
        return image.width, image.height, hashlib.sha256(content).hexdigest(), ""
    except Exception as error:  # Pillow's plugins raise many kinds; each is a row in the table, with its file
        message = re.sub(r"cannot identify image file.*", "not an image", str(error))
        return 0, 0, "", f"{type(error).__name__}: {message}"


def exclude_problems(images, problems):
    raise NotImplementedError


def save_problems(problems, path):
    raise NotImplementedError


def summarize_problems(problems):
    raise NotImplementedError
