"""One trained model: its mistakes, how sure it is, where it looks; and how two of them fare on changed images."""

import numpy as np
import pandas as pd

from helpers.plots.figures import DescribedFigure, draw_intervals, new_figure, say, shorten

_STYLES = (
    {"marker": "o", "linestyle": "-", "markerfacecolor": "black"},
    {"marker": "D", "linestyle": "--", "markerfacecolor": "white"},
    {"marker": "s", "linestyle": ":", "markerfacecolor": "0.6"},
    {"marker": "^", "linestyle": "-.", "markerfacecolor": "white"},
)
"""Of what is drawn side by side: told apart without colours."""


def plot_confusion(confusion: pd.DataFrame, *, most: int = 20) -> DescribedFigure:
    """Returns the confusion matrix: each row's images by what they were taken for, darker for a larger share.

    Args:
        confusion: from `confusion_table`, true classes x predicted classes.
        most: classes that are shown by name. Of more, those with the most mistakes are, and the last row and column
            stand for all the others together.
    """
    shown = _with_others(confusion, most)
    counts, size = shown.to_numpy(), len(shown)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(0.36 * size, 1.6)
    figure = new_figure(side + 2.6, side + 1.8)
    axes = figure.subplots()
    axes.imshow(shares, cmap="gray_r", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]}"
        font = (10 if size < 8 else 8) - 2 * (len(text) > 3)
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=font)
    names = [shorten(" ".join(str(name).split())) for name in shown.index]
    fits = max(map(len, names)) < 10 * side / size  # letters, at a tenth of an inch
    tilt = {} if fits else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(size), names, **tilt)
    axes.set_yticks(range(size), names)
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.85")
    axes.tick_params(which="minor", length=0)
    right, total = int(np.trace(confusion)), int(confusion.to_numpy().sum())
    chosen = f"\nof {len(confusion)} classes, the {most} with most mistakes" if size > most else ""
    title = f"{right} of {total} images recognised{chosen}"
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.description = f"Confusion matrix of {len(confusion)} classes: {right} of {total} images recognised. " + (
        f"Most frequent mistakes: {'; '.join(_frequent_mistakes(confusion))}." if right < total else "No mistake."
    )
    return figure


def _with_others(confusion: pd.DataFrame, most: int) -> pd.DataFrame:
    """Returns the table with all but the classes with most mistakes added up in a last row and column."""
    if len(confusion) <= most:
        return confusion
    counts = confusion.to_numpy()
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    kept = np.sort(np.argsort(-mistakes, kind="stable")[:most])
    group = np.full(len(confusion), most)
    group[kept] = np.arange(most)
    member = np.eye(most + 1, dtype=int)[group]
    names = [*confusion.index[kept], f"{len(confusion) - most} others"]
    return pd.DataFrame(member.T @ counts @ member, index=names, columns=names)


def _frequent_mistakes(confusion: pd.DataFrame, *, most: int = 5) -> list[str]:
    counts = confusion.to_numpy()
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(cell), len(counts)) for cell in order if wrong.flat[cell]]
    return [
        f"{confusion.index[row]} taken for {confusion.columns[column]}, {wrong[row, column]} of {counts[row].sum()}"
        for row, column in pairs
    ]


def plot_mistakes(pixels, mistakes: pd.DataFrame, *, per_row: int = 6) -> DescribedFigure:
    """Returns the images of mistakes in a grid, each with what it was taken for, how surely, and what it is.

    Args:
        pixels: uint8 (images, height, width, 3), in memory or stored.
        mistakes: from `find_mistakes`: position, label, predicted, probability.
        per_row: images side by side.
    """
    if mistakes.empty:
        return say("No mistake among these images.")
    rows = -(-len(mistakes) // per_row)
    figure = new_figure(1.6 * per_row, 2 * rows + 0.4)
    grid = figure.subplots(rows, per_row, squeeze=False).ravel()
    for axes, mistake in zip(grid, mistakes.itertuples(), strict=False):
        axes.imshow(pixels[[mistake.position]][0], interpolation="nearest")
        taken_for, is_label = (shorten(name, most=14) for name in (mistake.predicted, mistake.label))
        axes.set_title(f"{taken_for}: {_probability(mistake.probability)}\nis {is_label}", fontsize=9)
    for axes in grid:
        axes.set(xticks=[], yticks=[])
        axes.set_frame_on(bool(axes.images))
    figure.suptitle("Surest mistakes: what it was taken for, with what probability, and what it is", fontsize=11)
    figure.description = f"Grid of the {len(mistakes)} surest mistakes: " + "; ".join(
        f"{mistake.label} taken for {mistake.predicted} ({_probability(mistake.probability)})"
        for mistake in mistakes.itertuples()
    )
    return figure


def _probability(value: float) -> str:
    """Returns a probability with two digits, and none that is rounded to a certainty."""
    return ">0.99" if value > 0.99 else f"{value:.2f}"


def plot_reliability(tables: dict[str, pd.DataFrame]) -> DescribedFigure:
    """Returns how often a network is right over how sure it is, with 95 % intervals.

    Args:
        tables: title to `reliability_table`, such as "before" and "after temperature scaling".
    """
    figure = new_figure(5.5, 4.8)
    axes = figure.subplots()
    lowest = min(min(table["low"].min(), table["confidence"].min()) for table in tables.values())
    low = max(np.floor(10 * lowest - 0.2) / 10, 0)
    axes.plot([low, 1], [low, 1], color="0.6", linewidth=1, label="right as often as it says")
    for number, ((title, table), style) in enumerate(zip(tables.items(), _STYLES, strict=False)):
        style = style | {"label": title, "markersize": max(9 - 3 * number, 3)}  # seen where they coincide
        draw_intervals(axes, table["confidence"], table["accuracy"], table[["low", "high"]], **style)
    reach = 0.03 * (1 - low)
    axes.set(
        xlim=(low, 1 + reach),
        ylim=(low, 1 + reach),
        xlabel="confidence: mean probability of the predicted class",
        ylabel="accuracy, with its 95 % interval",
        title=f"Is it right as often as it says? Bins of {_count(next(iter(tables.values()))['images'])} images",
    )
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    figure.description = "Accuracy over confidence, in bins of equal numbers of images. " + " ".join(
        f"{title}: "
        + "; ".join(f"{row.confidence:.2f} {row.accuracy:.2f} ({row.low:.2f} to {row.high:.2f})" for row in rows)
        + "."
        for title, rows in ((title, list(table.itertuples())) for title, table in tables.items())
    )
    return figure


def _count(images: pd.Series) -> str:
    low, high = images.min(), images.max()
    return f"{low}" if low == high else f"{low} to {high}"


def plot_grad_cam(images: np.ndarray, maps: np.ndarray, *, titles: list[str], per_row: int = 3) -> DescribedFigure:
    """Returns each image beside itself with only what matters to the class: the rest fades to grey.

    Args:
        images: uint8 (images, height, width, 3).
        maps: float (images, height, width), 0..1, from `grad_cam`; the line encloses what is above a half.
        titles: one for each image, such as its class and probability.
        per_row: images side by side.
    """
    if not len(images):
        return say("No image was chosen.")
    height, width = images.shape[1:3]
    rows, gap = -(-len(images) // per_row), max(width // 20, 1)
    figure = new_figure(3.2 * per_row, (1.55 * height / width + 0.35) * rows)
    grid = figure.subplots(rows, per_row, squeeze=False).ravel()
    for axes, image, cam, title in zip(grid, images, maps, titles, strict=False):
        faded = 128 + (image - 128.0) * (0.2 + 0.8 * cam[..., None])
        sheet = np.concatenate([image, np.full((height, gap, 3), 255), faded.round()], axis=1)
        axes.imshow(sheet.astype("uint8"), interpolation="nearest")
        if cam.min() < 0.5 < cam.max():
            across, down = np.arange(width) + width + gap, np.arange(height)
            for color, thickness in (("white", 2.5), ("black", 1.0)):  # seen on what is dark and on what is light
                axes.contour(across, down, cam, levels=[0.5], colors=color, linewidths=thickness)
        axes.set_title(shorten(title, most=36), fontsize=9)
    for axes in grid:
        axes.set(xticks=[], yticks=[])
        axes.set_frame_on(False)
    figure.description = "Grad-CAM, each image beside itself with what does not matter faded: " + "; ".join(
        f"{title}: {_describe_map(cam)}" for title, cam in zip(titles, maps, strict=True)
    )
    return figure


def _describe_map(cam: np.ndarray) -> str:
    """Returns in words where a map has its centre, and how much of the area is above a half."""
    if not cam.max() > 0:
        return "nothing"
    middle = [
        np.average((np.arange(length) + 0.5) / length, weights=cam.sum(axis=1 - axis))
        for axis, length in enumerate(cam.shape)
    ]
    down, across = (names[int(3 * place)] for names, place in zip(_THIRDS, middle, strict=True))
    where = "centre" if (down, across) == ("middle", "middle") else f"{down} {across}".replace("middle ", "")
    return f"{where}, {100 * (cam > 0.5).mean():.0f} % of the area"


_THIRDS = (("upper", "middle", "lower"), ("left", "middle", "right"))


def plot_corruptions(table: pd.DataFrame) -> DescribedFigure:
    """Returns each arm's accuracy over severity, with 95 % intervals, a panel for each corruption.

    Args:
        table: from `corruption_table` (or `shifted_table`): corruption, severity, arm, accuracy, low, high, images.
    """
    changed = table["severity"] > 0  # not by name: a folder may be called "none"
    kinds = table.loc[changed, "corruption"].unique()
    arms = table["arm"].unique()
    columns = min(len(kinds), 3)
    rows = -(-len(kinds) // columns)
    figure = new_figure(3.1 * columns, 2.5 * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, kind in zip(grid, kinds, strict=False):
        part = table[~changed | (table["corruption"] == kind)].sort_values("severity", kind="stable")
        for number, (arm, style) in enumerate(zip(arms, _STYLES, strict=False)):
            points = part[part["arm"] == arm]
            right = 0.12 * (number - (len(arms) - 1) / 2)  # beside each other, else one interval hides the other
            draw_intervals(
                axes,
                points["severity"] + right,
                100 * points["accuracy"],
                100 * points[["low", "high"]],
                label=arm,
                markersize=5,
                **style,
            )
        severities = sorted(part["severity"].unique())
        axes.set(
            title=shorten(kind),
            xlabel="severity (0: as they are)" if 0 in severities else "severity",
            xlim=(severities[0] - 0.4, severities[-1] + 0.4),
            xticks=severities,
        )
        axes.grid(axis="y", color="0.9")
    for axes in grid[len(kinds) :]:
        axes.axis("off")
    for axes in grid[::columns]:
        axes.set_ylabel("accuracy (%)")
    figure.suptitle(f"Accuracy on the same {table['images'].max()} images, changed, with 95 % intervals")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms))
    figure.description = "Accuracy over the severity of corruptions. " + " ".join(
        f"{kind}: {'; '.join(_describe_arm(part[part['arm'] == arm]) for arm in arms)}."
        for (_, kind), part in table.groupby([changed, "corruption"], sort=False)
    )
    return figure


def _describe_arm(part: pd.DataFrame) -> str:
    part = part.sort_values("severity")
    return f"{part['arm'].iloc[0]} {', '.join(f'{100 * accuracy:.1f}' for accuracy in part['accuracy'])} %"


def plot_corrupted_examples(image: np.ndarray, *, seed: int = 0) -> DescribedFigure:
    """Returns one image under every corruption, in rows, from severity 0, as it is, to 5.

    Args:
        image: uint8 (height, width, 3).
        seed: as in `corruption_table`: then these are the images that the arms saw.
    """
    from helpers.evaluation import CORRUPTIONS, SEVERITIES, corrupt  # here: most figures need no SciPy

    severities = (0, *SEVERITIES)
    shape = image.shape[0] / image.shape[1]
    figure = new_figure(1.3 * len(severities) + 1, 1.3 * shape * len(CORRUPTIONS) + 0.4)
    for row, kind in zip(figure.subplots(len(CORRUPTIONS), len(severities)), CORRUPTIONS, strict=True):
        for axes, severity in zip(row, severities, strict=True):
            axes.imshow(corrupt(image, kind, severity=severity, seed=seed), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if kind == next(iter(CORRUPTIONS)):
                axes.set_title(f"severity {severity}" if severity else "as it is", fontsize=10)
        row[0].set_ylabel(kind, rotation=0, ha="right", va="center")
    figure.description = "One image under corruptions of growing severity, in rows: " + "; ".join(
        f"{kind}: {meaning}" for kind, meaning in CORRUPTIONS.items()
    )
    return figure
