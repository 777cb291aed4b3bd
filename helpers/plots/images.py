"""The images: how many there are, what they look like, what is wrong with them."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from helpers.data import FULL_WHITE, PARTS, find_white, read_image
from helpers.data.checks import KINDS
from helpers.data.parallel import quiet
from helpers.plots.figures import DescribedFigure, new_figure, say

_GREYS = {"train": "0.25", "validation": "0.55", "test": "0.8"}


def plot_counts(images: pd.DataFrame) -> DescribedFigure:
    """Returns a bar chart: how many images of each class are in train, validation and test.

    Args:
        images: columns label and split.
    """
    counts = pd.crosstab(images["label"], images["split"]).reindex(columns=PARTS, fill_value=0)
    figure = new_figure(7, min(1.2 + 0.28 * len(counts), 12))
    axes = figure.subplots()
    start = np.zeros(len(counts))
    for part in PARTS:
        axes.barh(counts.index, counts[part], left=start, color=_GREYS[part], edgecolor="black", label=part)
        start += counts[part].to_numpy()
    axes.invert_yaxis()
    axes.set(xlabel="images", ylabel="class", title="Images of each class")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3)
    total = counts.sum(axis=1)
    figure.description = (
        f"Bar chart of the number of images in {len(counts)} classes, from {total.min()} ({total.idxmin()}) to "
        f"{total.max()} ({total.idxmax()}), each bar divided into train, validation and test."
    )
    return figure


def plot_examples(images: pd.DataFrame, *, per_class: int = 8, classes: int = 10) -> DescribedFigure:
    """Returns a grid of training images, one row per class.

    Args:
        images: columns path, label and split, and white if there are images of 16 bits.
        per_class: images in a row.
        classes: rows at most; the first classes are shown.
    """
    train = images[images["split"] == "train"]
    names = sorted(train["label"].unique())[:classes]
    figure = new_figure(0.9 * per_class + 1, 0.9 * len(names) + 0.4)
    grid = figure.subplots(len(names), per_class, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        paths = train.loc[train["label"] == name, "path"]
        for axes, path in zip(row, paths, strict=False):
            thumbnail = read_image(path, white=find_white(images))
            thumbnail.thumbnail((96, 96))
            axes.imshow(thumbnail, interpolation="nearest")
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.axis("off" if not axes.images else "on")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle("Training images")
    figure.description = f"Grid of up to {per_class} training images each of {', '.join(names)}."
    return figure


def plot_sizes(images: pd.DataFrame) -> DescribedFigure:
    """Returns a scatter plot of the images' widths and heights in pixels.

    Args:
        images: columns width and height.
    """
    sizes = images.value_counts(["width", "height"]).reset_index()
    figure = new_figure(5, 3.6)
    axes = figure.subplots()
    area = 15 + 150 * sizes["count"] / sizes["count"].max()
    axes.scatter(sizes["width"], sizes["height"], s=area, facecolor="0.7", edgecolor="black")
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", title="Image sizes; larger dots, more images")
    axes.set_xlim(0, 1.15 * sizes["width"].max())
    axes.set_ylim(0, 1.15 * sizes["height"].max())
    figure.description = (
        f"Scatter plot of {len(sizes)} different image sizes: width {sizes['width'].min()} to "
        f"{sizes['width'].max()} pixels, height {sizes['height'].min()} to {sizes['height'].max()} pixels."
    )
    return figure


def plot_problems(
    problems: pd.DataFrame, *, white: int = FULL_WHITE, per_problem: int = 4, most: int = 16
) -> DescribedFigure:
    """Returns a grid of images in which a problem was found, each beside the one that it is like.

    Args:
        problems: from `check_images`.
        white: the value that becomes 255 in images of 16 bits.
        per_problem: images of one kind of problem at most.
        most: images in all.
    """
    pictured = problems[(problems["path"] != "") & problems["problem"].map(lambda problem: KINDS[problem].usable)]
    pictured = pictured[~pictured["problem"].isin(["stray file", "empty class"])]
    pairs = [
        frozenset(pair) if "" not in pair else number
        for number, pair in enumerate(zip(pictured["path"], pictured["other"], strict=True))
    ]
    once = pictured[~pd.Series(pairs, pictured.index, dtype=object).duplicated()]  # not both ways round
    rank = once.groupby("problem").cumcount()
    shown = once.loc[sorted(rank[rank < per_problem].sort_values(kind="stable").index[:most])]
    rows = -(-len(shown) // 4)
    if shown.empty:
        return say("No problem in any image.")
    figure = new_figure(9, 2.4 * rows)
    grid = figure.subplots(rows, 4, squeeze=False).ravel()
    for axes, row in zip(grid, shown.itertuples(), strict=False):
        pictures = [_thumbnail(path, white) for path in (row.path, row.other) if path]
        sheet = np.full((128, 136 * len(pictures) - 8, 3), 255, "uint8")
        for position, picture in enumerate(pictures):
            top, left = (128 - picture.shape[0]) // 2, 136 * position + (128 - picture.shape[1]) // 2
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        axes.imshow(sheet)
        names = [_short_name(path) for path in (row.path, row.other) if path]
        axes.set_title(textwrap.fill(row.problem, 24), fontsize=10)
        axes.set_xlabel("\n".join(names), fontsize=8)
    for axes in grid:
        axes.set(xticks=[], yticks=[])
        axes.set_frame_on(bool(axes.images))
    figure.suptitle(f"{len(shown)} of {len(pictured)} findings; beside an image the one that it is like")
    counts = pictured["problem"].value_counts(sort=False)
    figure.description = f"Grid of {len(shown)} images in which a problem was found, of " + ", ".join(
        f"{count} {problem}" for problem, count in counts.items()
    )
    return figure


def _thumbnail(path: str, white: int) -> np.ndarray:
    """Returns the image at most 128 pixels high and wide; a grey field with a cross if it cannot be read."""
    try:
        with quiet:
            image = read_image(path, white=white)
        image.thumbnail((128, 128))
        return np.asarray(image)
    except Exception:  # its row in the table says why
        field = np.full((128, 128, 3), 220, "uint8")
        field[np.eye(128, dtype=bool) | np.eye(128, dtype=bool)[::-1]] = 120
        return field


def _short_name(path: str) -> str:
    """Returns the folder, which is often the class, and the end of the name."""
    folder, name = (" ".join(part.split()) for part in (Path(path).parent.name, Path(path).name))
    return f"{folder[:14]}/{name if len(name) <= 16 else '…' + name[-15:]}"


def plot_image_rows(rows: dict[str, np.ndarray], *, per_row: int = 16) -> DescribedFigure:
    """Returns images in rows, by what they are.

    Args:
        rows: title to uint8 images (images, height, width, 3).
        per_row: images side by side.
    """
    lines = [
        (title, images[i : i + per_row]) for title, images in rows.items() for i in range(0, len(images), per_row)
    ]
    figure = new_figure(0.55 * per_row + 1, 0.6 * len(lines) + 0.2)
    for line, (title, images) in zip(figure.subplots(len(lines), per_row, squeeze=False), lines, strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image, interpolation="nearest")
        line[0].set_ylabel(title, rotation=0, ha="right", va="center")
    figure.description = "Rows of images: " + "; ".join(f"{len(images)} {title}" for title, images in rows.items())
    return figure


def plot_steps(steps: dict[str, np.ndarray]) -> DescribedFigure:
    """Returns one image at each step of its making, left to right.

    Args:
        steps: name of the step to an array (height, width), larger is brighter.
    """
    figure = new_figure(1.5 * len(steps), 1.8)
    for axes, (name, image) in zip(figure.subplots(1, len(steps)), steps.items(), strict=True):
        axes.imshow(image, cmap="gray", interpolation="nearest")
        axes.set(xticks=[], yticks=[], title=f"{name}\n{image.shape[0]}x{image.shape[1]}")
    figure.description = f"One image at each step of its making: {', '.join(steps)}."
    return figure
