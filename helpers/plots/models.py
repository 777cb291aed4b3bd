"""One model: its training, its mistakes, how sure it is, where it looks; and arms on changed images."""

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from helpers.plots.figures import (
    STYLES,
    DescribedFigure,
    describe_accuracy,
    draw_intervals,
    image_grid,
    label_log_axis,
    new_axes,
    new_figure,
    shorten,
    show_image,
    text_figure,
)

# ---- training


def plot_strengths(losses: dict[float, float], chosen: float) -> DescribedFigure:
    """Returns the head's cross-validated log-loss over C, the inverse strength of its regularisation.

    `losses` is C to mean log-loss, `chosen` the C that was taken.
    """
    figure, axes = new_axes(5.5, 3.2)
    axes.semilogx(list(losses), list(losses.values()), "o-", color="0.3")
    axes.semilogx([chosen], [losses[chosen]], "D", color="black", markersize=10, label=f"chosen: C = {chosen:g}")
    axes.set(xlabel="C (smaller: stronger regularisation)", ylabel="log-loss, cross-validated")
    axes.set_title("How strongly to regularise the head")
    label_log_axis(axes.xaxis, (1,))
    axes.legend()
    lowest = f"lowest, {losses[chosen]:.3f}, at C = {chosen:g}"
    figure.description = f"Curve of the cross-validated log-loss over C: {lowest}."
    return figure


def plot_history(history: dict[str, list[float]], start: dict[str, float], *, title: str) -> DescribedFigure:
    """Returns the curves of log-loss and accuracy over epochs, for training and validation images.

    Args:
        history: `Checkpoint.history`, with log_loss, val_log_loss, accuracy, val_accuracy; empty if it diverged.
        start: log_loss and accuracy of the validation images before the first epoch, from `calibrated_scores`.
        title: how the training ended, such as `Checkpoint.outcome`.
    """
    figure = new_figure(9, 3.6)
    for axes, key in zip(figure.subplots(1, 2), ("log_loss", "accuracy"), strict=True):
        train, validation = history.get(key, []), [start[key], *history.get(f"val_{key}", [])]
        axes.plot(range(1, len(train) + 1), train, "--", color="0.5", label="train")
        axes.plot(range(len(validation)), validation, "-", color="black", label="validation")
        axes.plot(0, validation[0], "o", color="black", label="before (frozen)")
        axes.set(xlabel="epoch", ylabel=key.replace("_", "-"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes.set_ylim(max(0.0, axes.dataLim.y0 - 0.05), 1.01)
    figure.suptitle(f"Fine-tuning: {title}")
    last = [start["log_loss"], *history.get("val_log_loss", [])][-1]
    figure.description = (
        f"Curves of log-loss and accuracy over {len(train)} epochs, training images dashed, validation images solid: "
        f"{title}. The validation log-loss is {start['log_loss']:.3f} before, and {last:.3f} at the end."
    )
    return figure


def plot_results(arms: dict[str, dict]) -> DescribedFigure:
    """Returns the arms' test accuracies with their 95 % intervals: name to test_accuracy, low and high (0..1)."""
    figure, axes = new_axes(7, 1 + 0.5 * len(arms))
    for row, arm in enumerate(arms.values()):
        accuracy = 100 * arm["test_accuracy"]
        axes.plot([100 * arm["low"], 100 * arm["high"]], [row, row], color="0.4", linewidth=3)
        axes.plot(accuracy, row, "o", color="black", markersize=8)
        axes.annotate(f"{accuracy:.1f}", (accuracy, row - 0.2), ha="center")
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set_ylim(len(arms) - 0.5, -0.7)
    axes.set(xlabel="test accuracy (%), with its 95 % interval")
    axes.grid(axis="x", color="0.9")
    told = "; ".join(f"{name} {describe_accuracy(arm)}" for name, arm in arms.items())
    figure.description = f"Test accuracy with 95 % interval: {told}"
    return figure


# ---- mistakes and calibration


def plot_confusion(confusion: pd.DataFrame) -> DescribedFigure:
    """Returns the confusion matrix (`confusion_table`), darker for a larger share of a row's images.

    Of more than 20 classes, those with the most mistakes are shown, and the last row and column add up the others.
    """
    shown = _with_others(confusion, most=20)
    counts, size = shown.to_numpy(), len(shown)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(0.36 * size, 1.6)
    figure, axes = new_axes(side + 2.6, side + 1.8)
    axes.imshow(shares, cmap="gray_r", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color, text = "white" if shares[row, column] > 0.5 else "black", f"{counts[row, column]}"
        font = (10 if size < 8 else 8) - 2 * (len(text) > 3)
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=font)
    names = [shorten(" ".join(str(name).split())) for name in shown.index]
    fits = max(map(len, names)) < 10 * side / size  # letters, at a tenth of an inch
    tilt = {} if fits else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(size), names, **tilt)
    axes.set_yticks(range(size), names)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.85")
    axes.tick_params(which="minor", length=0)
    right = f"{np.trace(confusion)} of {confusion.to_numpy().sum()} images recognised"
    chosen = f"\nof {len(confusion)} classes, the 20 with most mistakes" if len(confusion) > 20 else ""
    axes.set(xlabel="predicted class", ylabel="true class", title=right + chosen)
    figure.description = f"Confusion matrix of {len(confusion)} classes: {right}."
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


def prediction_titles(predictions: pd.DataFrame) -> list[str]:
    """Returns "cat (97 %)" and below it "true: dog", for each row of `find_mistakes` or `choose_examples`."""
    titles = []
    for row in predictions.itertuples():
        predicted, label = (" ".join(name.split()) for name in (row.predicted, row.label))
        titles.append(f"{predicted} ({_percent(row.probability)})\ntrue: {label}")
    return titles


def _percent(probability: float) -> str:
    return "> 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"  # none is rounded to a certainty


def _fitted(title: str, most: int) -> str:
    return "\n".join(shorten(line, most=most) for line in title.split("\n"))


def plot_mistakes(pixels, mistakes: pd.DataFrame) -> DescribedFigure:
    """Returns the images of mistakes (`find_mistakes`) in a grid, each with its predicted and its true class.

    `pixels` are all the images, uint8 (images, height, width, 3), in memory or stored.
    """
    if mistakes.empty:
        return text_figure("No mistake among these images.")
    rows = -(-len(mistakes) // 4)
    figure, grid = image_grid(rows, 4, width=7, height=2.1 * rows + 0.4)
    for axes, position, title in zip(grid.flat, mistakes["position"], prediction_titles(mistakes), strict=False):
        show_image(axes, pixels[[position]][0], _fitted(title, 22))
    figure.suptitle("Most confident mistakes", fontsize=11)
    told = (f"{row.label} taken for {row.predicted} ({_percent(row.probability)})" for row in mistakes.itertuples())
    figure.description = f"Grid of the {len(mistakes)} most confident mistakes: {'; '.join(told)}"
    return figure


def plot_predictions(
    pixels, probabilities: np.ndarray, labels: np.ndarray, *, class_names: list[str], files=None, right=6, wrong=6
) -> DescribedFigure:
    """Returns images that were classified correctly and wrongly, drawn at random, with what was predicted.

    Args:
        pixels: all the images, uint8 (images, height, width, 3), in memory or stored.
        probabilities: float (images, classes).
        labels: int (images,).
        class_names: in the order of the classes.
        files: a path for each image, whose end is written below it; None for none.
        right: how many correct ones to show, at most.
        wrong: how many mistakes to show, at most; None draws `right` images whatever they are.
    """
    predicted, rng = probabilities.argmax(axis=1), np.random.default_rng(0)
    order = rng.permutation(len(labels))
    correct = predicted[order] == labels[order]
    rows = [order[:right]] if wrong is None else [order[correct][:right], order[~correct][:wrong]]
    rows = [row for row in rows if len(row)]
    columns = max(map(len, rows))
    figure, grid = image_grid(len(rows), columns, width=1.6 * columns, height=2.15 * len(rows))
    told = []
    for line, row in zip(grid, rows, strict=True):
        for axes, position in zip(line, row, strict=False):
            name, label = (str(class_names[index]) for index in (predicted[position], labels[position]))
            percent = _percent(probabilities[position].max())
            title = f"{shorten(name, most=14)} ({percent})"
            title += "" if name == label else f"\ntrue: {shorten(label, most=14)}"
            show_image(axes, pixels[[position]][0], title)
            if files is not None:
                axes.set_xlabel(shorten(str(files[position]).rpartition("/")[2], most=16), fontsize=8)
            told.append(f"{name} ({percent})" + (", right" if name == label else f", true {label}"))
            if name != label:  # a heavy frame: seen without colours
                for spine in axes.spines.values():
                    spine.set(linewidth=3, color="#d95f02")
    figure.description = f"Predictions, drawn at random: {'; '.join(told)}."
    return figure


def plot_reliability(tables: dict[str, pd.DataFrame]) -> DescribedFigure:
    """Returns accuracy over confidence, with 95 % intervals: title to `reliability_table`."""
    figure, axes = new_axes(5.5, 4.8)
    lowest = min(min(table["low"].min(), table["confidence"].min()) for table in tables.values())
    low = max(np.floor(10 * lowest - 0.2) / 10, 0)
    axes.plot([low, 1], [low, 1], color="0.6", linewidth=1, label="right as often as it says")
    told = []
    for number, ((title, table), style) in enumerate(zip(tables.items(), STYLES, strict=False)):
        style = style | {"label": title, "markersize": max(9 - 3 * number, 3)}  # seen where they coincide
        draw_intervals(axes, table["confidence"], table["accuracy"], table[["low", "high"]], **style)
        bins = (f"{row.confidence:.2f} {row.accuracy:.2f}" for row in table.itertuples())
        told.append(f"{title}: {'; '.join(bins)}.")
    images = next(iter(tables.values()))["images"]
    count = f"{images.min()}" if images.min() == images.max() else f"{images.min()} to {images.max()}"
    limits = (low, 1 + 0.03 * (1 - low))
    axes.set(xlim=limits, ylim=limits, title=f"Is it right as often as it says? Bins of {count} images")
    axes.set(xlabel="confidence: mean probability of the predicted class", ylabel="accuracy, with its 95 % interval")
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    figure.description = f"Confidence and accuracy, in bins of equal numbers of images. {' '.join(told)}"
    return figure


# ---- where it looks


def plot_grad_cam(images: np.ndarray, maps: np.ndarray | None, *, titles: list[str]) -> DescribedFigure:
    """Returns each image, uint8 (images, height, width, 3), beside itself with what does not matter faded to grey.

    `maps` are those of `locate_evidence`, with a line around what is above a half; `titles` may be those of
    `prediction_titles`.
    """
    if not len(images):
        return text_figure("No image was chosen.")
    if maps is None:
        return text_figure("This network has no spatial feature maps (e.g. a transformer).")
    height, width = images.shape[1:3]
    rows, gap = -(-len(images) // 3), max(width // 20, 1)
    figure, grid = image_grid(rows, 3, width=9.6, height=(1.55 * height / width + 0.5) * rows)
    for axes, image, cam, title in zip(grid.flat, images, maps, titles, strict=False):
        faded = 128 + (image - 128.0) * (0.2 + 0.8 * cam[..., None])
        sheet = np.concatenate([image, np.full((height, gap, 3), 255), faded.round()], axis=1)
        show_image(axes, sheet.astype("uint8"), _fitted(title, 44))
        axes.set_frame_on(False)
        if cam.min() < 0.5 < cam.max():
            across, down = np.arange(width) + width + gap, np.arange(height)
            for color, thickness in (("white", 2.5), ("black", 1.0)):  # seen on what is dark and on what is light
                axes.contour(across, down, cam, levels=[0.5], colors=color, linewidths=thickness)
    told = [f"{title}: {_describe_map(cam)}".replace("\n", ", ") for title, cam in zip(titles, maps, strict=True)]
    figure.description = f"Grad-CAM, each image beside itself with what does not matter faded: {'; '.join(told)}"
    return figure


def _describe_map(cam: np.ndarray) -> str:
    """Returns in words where a map has its centre, and how much of the area is above a half."""
    if not cam.max() > 0:
        return "nothing"
    down = np.average(np.arange(len(cam)) + 0.5, weights=cam.sum(axis=1)) / len(cam)
    across = np.average(np.arange(cam.shape[1]) + 0.5, weights=cam.sum(axis=0)) / cam.shape[1]
    words = ("upper ", "", "lower ")[int(3 * down)] + ("left", "", "right")[int(3 * across)]
    return f"{words.strip() or 'centre'}, {100 * (cam > 0.5).mean():.0f} % of the area"


# ---- changed images


def plot_corruptions(table: pd.DataFrame) -> DescribedFigure:
    """Returns each arm's accuracy over severity (`corruption_table`), a panel for each of the five corruptions."""
    unchanged = table["severity"] == 0
    kinds, arms = table.loc[~unchanged, "corruption"].unique(), table["arm"].unique()
    figure = new_figure(9.3, 5.7)
    grid = figure.subplots(2, 3, sharey=True).ravel()
    told = []
    for axes, kind in zip(grid, kinds, strict=False):
        part = table[unchanged | (table["corruption"] == kind)]
        for number, (arm, style) in enumerate(zip(arms, STYLES, strict=False)):
            points = part[part["arm"] == arm]
            x = points["severity"] + 0.12 * (number - (len(arms) - 1) / 2)  # beside each other, to see both intervals
            accuracy, spans = 100 * points["accuracy"], 100 * points[["low", "high"]]
            draw_intervals(axes, x, accuracy, spans, label=arm, markersize=5, **style)
            told.append(f"{kind}, {arm}: {', '.join(f'{value:.1f}' for value in accuracy)} %.")
        axes.set(title=kind, xlabel="severity (0: unchanged)", xticks=range(6), xlim=(-0.4, 5.4))
        axes.grid(axis="y", color="0.9")
    grid[-1].axis("off")
    for axes in grid[::3]:
        axes.set_ylabel("accuracy (%)")
    figure.suptitle(f"Accuracy on the same {table['images'].max()} images, changed, with 95 % intervals")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms))
    figure.description = f"Accuracy over the severity of corruptions, from 0. {' '.join(told)}"
    return figure


def plot_corrupted_examples(image: np.ndarray) -> DescribedFigure:
    """Returns one image, uint8 (height, width, 3), under every corruption, from severity 0, unchanged, to 5."""
    from helpers.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt  # here: most figures need no SciPy

    severities, shape = (0, *SEVERITIES), image.shape[0] / image.shape[1]
    figure, grid = image_grid(len(CORRUPTIONS), 6, width=8.8, height=1.3 * shape * len(CORRUPTIONS) + 0.4)
    for row, kind in zip(grid, CORRUPTIONS, strict=True):
        for axes, severity in zip(row, severities, strict=True):
            show_image(axes, corrupt(image, kind, severity=severity), row="" if severity else kind)
    for axes, severity in zip(grid[0], severities, strict=True):
        axes.set_title(f"severity {severity}" if severity else "unchanged", fontsize=10)
    figure.description = f"One image under corruptions of growing severity, in rows: {', '.join(CORRUPTIONS)}."
    return figure
