"""One head, one training, and the arms side by side."""

import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter

from helpers.plots.figures import DescribedFigure, new_figure


def plot_strengths(losses: dict[float, float], chosen: float) -> DescribedFigure:
    """Returns the cross-validated log-loss of the head against the strength of its regularisation.

    Args:
        losses: inverse strength C to mean log-loss.
        chosen: the C that was taken.
    """
    figure = new_figure(5.5, 3.2)
    axes = figure.subplots()
    axes.semilogx(list(losses), list(losses.values()), "o-", color="0.3")
    axes.semilogx([chosen], [losses[chosen]], "D", color="black", markersize=10, label=f"chosen: C = {chosen:.2g}")
    axes.set(
        xlabel="inverse strength C (left: strong regularisation)",
        ylabel="log-loss, cross-validated",
        title="How strongly to regularise the head",
    )
    axes.xaxis.set_major_formatter("{x:g}")  # the usual one writes formulas, which are switched off
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend()
    figure.description = (
        f"Curve of the cross-validated log-loss against the inverse regularisation strength C: lowest, "
        f"{losses[chosen]:.3f}, at C = {chosen:.2g}."
    )
    return figure


def plot_history(history: dict[str, list[float]], start: dict[str, float], *, title: str) -> DescribedFigure:
    """Returns the curves of log-loss and accuracy over epochs, for training and validation images.

    Args:
        history: `Checkpoint.history`, with log_loss, val_log_loss, accuracy, val_accuracy.
        start: log_loss and accuracy of the validation images before the first epoch, from `judge`.
        title: how the training ended, such as `Checkpoint.outcome`.
    """
    history = {
        f"{part}{key}": history.get(f"{part}{key}", []) for part in ("", "val_") for key in ("log_loss", "accuracy")
    }
    epochs = np.arange(1, len(history["log_loss"]) + 1)  # none, if it diverged at once
    last = history["val_log_loss"][-1] if history["val_log_loss"] else start["log_loss"]
    figure = new_figure(9, 3.6)
    for axes, key in zip(figure.subplots(1, 2), ("log_loss", "accuracy"), strict=True):
        validation = [start[key], *history[f"val_{key}"]]
        axes.plot(epochs, history[key], "--", color="0.5", label="train")
        axes.plot([0, *epochs], validation, "-", color="black", label="validation")
        axes.plot(0, validation[0], "o", color="black", label="before (frozen)")
        axes.set(xlabel="epoch", ylabel=key.replace("_", "-"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes.set_ylim(max(0.0, axes.dataLim.y0 - 0.05), 1.01)
    figure.suptitle(f"Fine-tuning: {title}")
    figure.description = (
        f"Curves of log-loss and accuracy over {len(epochs)} epochs, training images dashed, validation images "
        f"solid: {title}. The validation log-loss is {start['log_loss']:.3f} before, and {last:.3f} at the end."
    )
    return figure


def plot_results(arms: dict[str, dict]) -> DescribedFigure:
    """Returns the arms' test accuracies with their 95 % intervals.

    Args:
        arms: name to a dict with test_accuracy, low and high, fractions.
    """
    figure = new_figure(7, 1 + 0.5 * len(arms))
    axes = figure.subplots()
    for row, arm in enumerate(arms.values()):
        axes.plot([100 * arm["low"], 100 * arm["high"]], [row, row], color="0.4", linewidth=3)
        axes.plot(100 * arm["test_accuracy"], row, "o", color="black", markersize=8)
        axes.annotate(f"{100 * arm['test_accuracy']:.1f}", (100 * arm["test_accuracy"], row - 0.2), ha="center")
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set_ylim(len(arms) - 0.5, -0.7)
    axes.set(xlabel="test accuracy (%), with its 95 % interval")
    axes.grid(axis="x", color="0.9")
    figure.description = "Test accuracy with 95 % interval: " + "; ".join(
        f"{name} {100 * arm['test_accuracy']:.1f} % ({100 * arm['low']:.1f} to {100 * arm['high']:.1f})"
        for name, arm in arms.items()
    )
    return figure
