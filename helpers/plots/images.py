"""The images: how many there are, what they look like, what is wrong with them."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from PIL import Image

from helpers.data import find_white
from helpers.data.augmentation import AUGMENTATIONS, augment
from helpers.data.checks import KINDS
from helpers.data.parallel import quiet
from helpers.data.reading import FULL_WHITE, read_image
from helpers.data.tables import PARTS
from helpers.plots.figures import DescribedFigure, image_grid, new_axes, shorten, show_image, text_figure

_GREYS = {"train": "0.25", "validation": "0.55", "test": "0.8"}


def plot_counts(images: pd.DataFrame) -> DescribedFigure:
    """Returns a bar chart of how many images of each class are in each part (columns label and split)."""
    counts = pd.crosstab(images["label"], images["split"]).reindex(columns=PARTS, fill_value=0)
    figure, axes = new_axes(7, min(1.2 + 0.28 * len(counts), 12))
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


def plot_examples(images: pd.DataFrame) -> DescribedFigure:
    """Returns a grid of training images, eight each of the first ten classes (columns path, label, split, white)."""
    train = images[images["split"] == "train"]
    names = sorted(train["label"].unique())[:10]
    figure, grid = image_grid(len(names), 8, width=8.2, height=0.9 * len(names) + 0.4)
    for row, name in zip(grid, names, strict=True):
        for axes, path in zip(row, train.loc[train["label"] == name, "path"], strict=False):
            thumbnail = read_image(path, white=find_white(images))
            thumbnail.thumbnail((96, 96))
            show_image(axes, thumbnail, row=name if axes is row[0] else "")
    figure.suptitle("Training images")
    figure.description = f"Grid of up to 8 training images each of {', '.join(names)}."
    return figure


def plot_sizes(images: pd.DataFrame) -> DescribedFigure:
    """Returns a scatter plot of the images' sizes in pixels (columns width and height)."""
    sizes = images.value_counts(["width", "height"]).reset_index()
    figure, axes = new_axes(5, 3.6)
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


def plot_problems(problems: pd.DataFrame, *, white: int = FULL_WHITE) -> DescribedFigure:
    """Returns a grid of images in which `check_images` found a problem, each beside the one that it is like.

    At most 16 are shown, four of a kind; `white` is the value that becomes 255 in images of 16 bits.
    """
    pictured = problems[(problems["path"] != "") & problems["problem"].map(lambda problem: KINDS[problem].usable)]
    pictured = pictured[~pictured["problem"].isin(["stray file", "empty class"])]
    pairs = [(row.problem, frozenset((row.path, row.other))) for row in pictured.itertuples()]
    once = pictured[~pd.Series(pairs, pictured.index, dtype=object).duplicated()]  # not both ways round
    rank = once.groupby("problem").cumcount()
    shown = once.loc[sorted(rank[rank < 4].sort_values(kind="stable").index[:16])]
    if shown.empty:
        return text_figure("No problem in any image.")
    rows = -(-len(shown) // 4)
    figure, grid = image_grid(rows, 4, width=9, height=2.4 * rows)
    for axes, row in zip(grid.flat, shown.itertuples(), strict=False):
        paths = [path for path in (row.path, row.other) if path]
        sheet = Image.new("RGB", (136 * len(paths) - 8, 128), "white")
        for position, path in enumerate(paths):
            thumbnail = _thumbnail(path, white)
            sheet.paste(thumbnail, (136 * position + (128 - thumbnail.width) // 2, (128 - thumbnail.height) // 2))
        show_image(axes, sheet, textwrap.fill(row.problem, 24))
        names = (f"{Path(path).parent.name[:14]}/{shorten(Path(path).name, most=16)}" for path in paths)
        axes.set_xlabel("\n".join(" ".join(name.split()) for name in names), fontsize=8)
    figure.suptitle(f"{len(shown)} of {len(pictured)} findings; beside an image the one that it is like")
    counts = pictured["problem"].value_counts(sort=False)
    found = ", ".join(f"{count} {problem}" for problem, count in counts.items())
    figure.description = f"Grid of {len(shown)} images in which a problem was found, of {found}"
    return figure


def _thumbnail(path: str, white: int) -> Image.Image:
    """Returns the image at most 128 pixels high and wide; a grey field if it cannot be read: its row says why."""
    try:
        with quiet:
            image = read_image(path, white=white)
        image.thumbnail((128, 128))
        return image
    except Exception:  # Pillow's plugins raise many kinds
        return Image.new("RGB", (128, 128), "gainsboro")


def plot_image_rows(rows: dict[str, np.ndarray]) -> DescribedFigure:
    """Returns images in rows of 16: title to uint8 (images, height, width, 3)."""
    lines = [(title, images[i : i + 16]) for title, images in rows.items() for i in range(0, len(images), 16)]
    figure, grid = image_grid(len(lines), 16, width=9.8, height=0.6 * len(lines) + 0.2)
    for line, (title, images) in zip(grid, lines, strict=True):
        for axes, image in zip(line, images, strict=False):
            show_image(axes, image, row=title if axes is line[0] else "")
    figure.description = "Rows of images: " + "; ".join(f"{len(images)} {title}" for title, images in rows.items())
    return figure


def plot_augmentations(pixels) -> DescribedFigure:
    """Returns six of these images, uint8 (images, height, width, 3), and a variant of each by every augmentation."""
    images = pixels[np.linspace(0, len(pixels) - 1, 6).astype(int)]
    rows = {"unchanged": images}
    for kind in AUGMENTATIONS:
        rows[kind] = [augment(image, (kind,), seed=number) for number, image in enumerate(images)]
    figure, grid = image_grid(len(rows), len(images), width=1.2 * len(images) + 1, height=1.25 * len(rows))
    for line, (kind, variants) in zip(grid, rows.items(), strict=True):
        for column, (axes, variant) in enumerate(zip(line, variants, strict=True)):
            show_image(axes, variant, row="" if column else kind)
    figure.description = f"{len(images)} training images, unchanged and under {', '.join(AUGMENTATIONS)}."
    return figure


def plot_steps(steps: dict[str, np.ndarray]) -> DescribedFigure:
    """Returns one image at each step of its making: name to an array (height, width), larger is brighter."""
    figure, grid = image_grid(1, len(steps), width=1.5 * len(steps), height=1.8)
    for axes, (name, image) in zip(grid.flat, steps.items(), strict=True):
        show_image(axes, image, f"{name}\n{image.shape[0]}x{image.shape[1]}", cmap="gray")
    figure.description = f"One image at each step of its making: {', '.join(steps)}."
    return figure
