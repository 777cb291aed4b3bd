"""The study: from which stage on to fine-tune, at what learning rate, and whether it pays."""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from helpers.plots.figures import DescribedFigure, draw_intervals, label_points, new_figure, say, shorten

_NAMES_APART = 0.028
"""Share of a 7-inch axis that a name written upwards takes."""


def plot_probe(probe: pd.DataFrame, taken: str) -> DescribedFigure:
    """Returns the log-loss of a linear head over the depth at which the network is cut.

    Args:
        probe: a row per cut point: cut, cost (share of the network's cost, 0..1), log_loss (cross-validated), error
            (standard error of its difference to the lowest).
        taken: the cut point that is taken.
    """
    known = probe[np.isfinite(probe["log_loss"])]
    if known.empty:
        return say("With so few images of a class, nothing can be cross-validated.")
    figure = new_figure(8, 4)
    axes = figure.subplots()
    errors = known["error"].fillna(0)
    style = {"color": "black", "marker": "o", "markerfacecolor": "white", "capsize": 3, "elinewidth": 1}
    axes.errorbar(
        known["cost"],
        known["log_loss"],
        yerr=errors,
        label="its difference to the lowest: one standard error",
        **style,
    )
    chosen = known[known["cut"] == taken]
    axes.plot(chosen["cost"], chosen["log_loss"], "D", color="black", markersize=10, label=f"taken: {shorten(taken)}")
    axes.set(
        xlim=(-0.03, 1.03),
        yscale="log",
        xlabel="share of the network's cost up to the cut (1: all layers are taken)",
        ylabel="log-loss, cross-validated",
        title="What each depth of the frozen network knows: lower is better",
    )
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter("{:g}".format))
    axes.yaxis.set_minor_formatter(NullFormatter())
    names = _thin_out(dict(zip(probe["cut"], probe["cost"], strict=True)), first=pd.Series([taken]))
    costs = probe.set_index("cut")["cost"]
    axes.secondary_xaxis("top").set_xticks(
        [costs[name] for name in names], [shorten(name) for name in names], rotation=90, fontsize=8
    )
    axes.grid(axis="y", color="0.9")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    best = known.loc[known["log_loss"].idxmin()]
    figure.description = (
        f"Cross-validated log-loss of a linear head over the depth of the cut ({len(known)} cut points): lowest at "
        f"{best['cut']}, {best['log_loss']:.3f}; with all layers {known.iloc[-1]['log_loss']:.3f}. Taken: {taken}."
    )
    return figure


def plot_depth(probe: pd.DataFrame, race: pd.DataFrame) -> DescribedFigure:
    """Returns the accuracy on validation images over depth: cut and frozen there, and fine-tuned from there on.

    Args:
        probe: a row per cut point: cut, cost (share of the network's cost, 0..1), accuracy of a linear head there.
        race: a row per arm and rung: rung, cut, stage, cost_before, learning_rate, log_loss, accuracy, low and high.
            For each stage the arm with the lowest log-loss of those that went through most rungs is shown.
    """
    probe = probe.sort_values("cost", ignore_index=True)
    tuned = _rank(race).drop_duplicates("stage").sort_values("cost_before")
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    style = {"color": "black", "marker": "o", "markerfacecolor": "black", "markersize": 5}
    axes.plot(probe["cost"], probe["accuracy"], label="frozen: cut here, with a linear head", **style)
    style = {"marker": "D", "linestyle": "--", "label": "fine-tuned from here on, at its best rate and cut"}
    spans = tuned[["low", "high"]]
    draw_intervals(axes, tuned["cost_before"], tuned["accuracy"], spans, markerfacecolor="white", **style)
    diverged = race[~race["stage"].isin(tuned["stage"])].drop_duplicates("stage")
    if len(diverged):
        bottom = np.zeros(len(diverged))
        style = {"color": "black", "clip_on": False, "transform": axes.get_xaxis_transform()}
        axes.plot(diverged["cost_before"], bottom, "X", label="diverged", **style)
    axes.set(
        xlim=(-0.03, 1.03),
        xlabel="share of the network's cost up to here",
        ylabel="accuracy on validation images",
        title="Accuracy over depth: cut and frozen here, or fine-tuned from here on",
    )
    places = dict(zip([*race["stage"], *probe["cut"]], [*race["cost_before"], *probe["cost"]], strict=True))
    names = _thin_out(places, first=race["stage"])
    axes.secondary_xaxis("top").set_xticks(
        [places[name] for name in names], [shorten(name) for name in names], rotation=90, fontsize=8
    )
    axes.grid(axis="y", color="0.9")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    figure.description = f"Accuracy on validation images over depth. {_describe_depth(probe, tuned)}" + (
        f" Diverged at every rate: {', '.join(diverged['stage'])}." if len(diverged) else ""
    )
    return figure


def _describe_depth(probe: pd.DataFrame, tuned: pd.DataFrame) -> str:
    known = probe.dropna(subset="accuracy")
    sentences = []
    if len(known):
        best, last = known.loc[known["accuracy"].idxmax()], known.iloc[-1]
        sentences.append(
            f"Frozen, with a linear head: best when cut at {best['cut']}, {best['accuracy']:.3f}; with all layers "
            f"{last['accuracy']:.3f}."
        )
    if len(tuned):
        sentences.append(
            "Fine-tuned from a stage on, with 95 % intervals: "
            + "; ".join(
                f"{arm.stage} {arm.accuracy:.3f} ({arm.low:.3f} to {arm.high:.3f}) at rate "
                f"{arm.learning_rate:g}, cut at {arm.cut}"
                for arm in tuned.itertuples()
            )
            + "."
        )
    return " ".join(sentences)


def _rank(race: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that did not diverge, the best first: of the last rung the lowest log-loss."""
    return race[np.isfinite(race["log_loss"].astype(float))].sort_values(
        ["rung", "log_loss"], ascending=[False, True]
    )


def _thin_out(places: dict[str, float], first: pd.Series) -> list[str]:
    """Returns the names that can be written side by side; the `first` have precedence."""
    kept: list[str] = []
    for name in sorted(places, key=lambda name: (name not in set(first), places[name])):
        if all(abs(places[name] - places[other]) >= _NAMES_APART for other in kept):
            kept.append(name)
    return kept


def plot_rates(race: pd.DataFrame) -> DescribedFigure:
    """Returns a heat map of the validation log-loss, cuts and stages by learning rates.

    Shades compare all arms at their first rung, where all are judged on the same images; below it stands what an arm
    that stayed in the race reached at its last one.

    Args:
        race: a row per arm and rung, with rung, cut, stage, cost_before, learning_rate, steps and log_loss (infinite
            or NaN if it diverged).
    """
    if race.empty:
        return say("No arm has raced.")
    arm = ["cut", "stage", "learning_rate"]
    rungs = race.sort_values(["rung", "cost_before"], kind="stable", ignore_index=True)
    first, last = (rungs.drop_duplicates(arm, keep=keep).set_index(arm) for keep in ("first", "last"))
    cuts, stages = list(race["cut"].unique()), list(race.sort_values("cost_before")["stage"].unique())
    columns = [(cut, stage) for cut in cuts for stage in stages if (cut, stage) in first.index.droplevel(2)]
    rates = sorted(race["learning_rate"].unique())
    losses = first["log_loss"].astype(float)
    worth = np.log(losses[np.isfinite(losses)].clip(lower=1e-4))  # so that one arm far off leaves the others apart
    darkest, span = worth.min(), max(worth.max() - worth.min(), 1e-9)
    figure = new_figure(8, min(max(2 + 0.5 * len(rates), 3.5), 8))
    axes = figure.subplots()
    shades = np.full((len(rates), len(columns)), np.nan)
    crowded = len(columns) > 9
    for (cut, stage, rate), start in first.iterrows():
        row, column = rates.index(rate), columns.index((cut, stage))
        lines, end = [_shown(start["log_loss"])], last.loc[(cut, stage, rate)]
        if np.isfinite(start["log_loss"]):
            shades[row, column] = 0.2 + 0.75 * (worth[(cut, stage, rate)] - darkest) / span
        if end["rung"] > start["rung"]:
            lines.append(f"{end['steps']:g} steps: {_shown(end['log_loss'])}")
        axes.text(
            column,
            row,
            "\n".join(lines),
            ha="center",
            va="center",
            color="white" if shades[row, column] < 0.5 else "black",
            fontsize=7 if crowded else 9,
            rotation=90 if crowded else 0,
        )
    axes.imshow(shades, cmap="gray", vmin=0, vmax=1, origin="lower", aspect="auto")
    ranked = _rank(last.reset_index())
    if len(ranked):
        best = ranked.iloc[0]
        place = columns.index((best["cut"], best["stage"])), rates.index(best["learning_rate"])
        for color, width in (("white", 6), ("black", 3)):  # seen on dark cells and on light ones
            corner = place[0] - 0.46, place[1] - 0.46
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=color, linewidth=width))
    labels = [f"{shorten(stage)}\ncut at {shorten(cut)}" for cut, stage in columns]
    tilt = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, labels)) > 90 else {}
    axes.set_xticks(range(len(columns)), labels, **tilt)
    axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set(
        xlabel="first stage that is fine-tuned, and where the network is cut",
        ylabel="learning rate",
        title=f"Log-loss on validation images after {first['steps'].min()} steps: darker is better\n"
        "framed: the best of those that raced on",
    )
    figure.description = (
        f"Heat map of the validation log-loss by cut and stage ({len(columns)}) and learning rate ({len(rates)}). "
        + _describe_race(last.reset_index(), ranked)
    )
    return figure


def _shown(loss: float) -> str:
    if not np.isfinite(loss):
        return "diverged"
    return f"{loss:.3f}" if loss < 100 else f"{loss:.0e}"


def _describe_race(arms: pd.DataFrame, ranked: pd.DataFrame) -> str:
    if ranked.empty:
        return "All diverged."
    best, worst = ranked.iloc[0], ranked.loc[ranked["log_loss"].idxmax()]

    def name(arm: pd.Series) -> str:
        rate = f"{arm['learning_rate']:g}"
        return f"{arm['log_loss']:.3f}, cut at {arm['cut']}, from {arm['stage']} on at rate {rate}"

    return (
        f"Best: {name(best)}; highest: {name(worst)}. {(arms['rung'] < arms['rung'].max()).sum()} stopped at an "
        f"earlier rung, {len(arms) - len(ranked)} diverged."
    )


def plot_costs(arms: pd.DataFrame) -> DescribedFigure:
    """Returns the arms' test accuracies, with their 95 % intervals, against the seconds that their training takes.

    Args:
        arms: a row per arm, indexed by its name, with test_accuracy, low and high (fractions), seconds (of one
            training; arms without are left out) and trainable_weights (count).
    """
    arms = arms[(arms["seconds"] > 0) & np.isfinite(arms["seconds"]) & arms["test_accuracy"].notna()]
    arms = arms.sort_values(["seconds", "test_accuracy"])
    efficient = efficient_arms(arms)
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    axes.set_xscale("log")
    seconds, accuracy, spans = arms["seconds"], 100 * arms["test_accuracy"], 100 * arms[["low", "high"]]
    draw_intervals(axes, seconds, accuracy, spans, linestyle="none", color="0.5")
    for chosen, face in ((efficient, "black"), (~efficient, "white")):
        axes.plot(seconds[chosen], accuracy[chosen], "o", color="black", markerfacecolor=face, markersize=8)
    room = max(seconds.max() / seconds.min(), 30) if len(arms) else 30
    low, high = (seconds.min() / room**0.1, seconds.max() * room**0.35) if len(arms) else (1, 10)
    axes.step(
        [*seconds[efficient], high],
        [*accuracy[efficient], accuracy.max()],
        "--",
        where="post",
        color="0.3",
        zorder=1,
        label="efficient: no other arm is cheaper and as accurate",
    )
    axes.set(
        xlim=(low, high),
        xlabel="training time (seconds, logarithmic)",
        ylabel="test accuracy (%), with its 95 % interval",
        title="Accuracy against cost",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 10_000 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter("{:g}".format))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center")
    if arms.empty:
        axes.text(0.5, 0.5, "no arm was trained", ha="center", transform=axes.transAxes)
    names = [shorten(name, most=36) for name in arms.index]
    label_points(axes, names, seconds, accuracy, spans)
    figure.description = "Test accuracy with 95 % interval against training time: " + (
        "; ".join(
            f"{arm.Index} {100 * arm.test_accuracy:.1f} % ({100 * arm.low:.1f} to {100 * arm.high:.1f}) in "
            f"{arm.seconds:.{0 if arm.seconds >= 100 else 1}f} s"
            + (f" with {arm.trainable_weights:,.0f} trainable weights" if arm.trainable_weights >= 0 else "")
            for arm in arms.itertuples()
        )
        + f". Efficient: {', '.join(arms.index[efficient])}."
        if len(arms)
        else "no arm was trained."
    )
    return figure


def efficient_arms(arms: pd.DataFrame) -> pd.Series:
    """Returns for each arm whether it is efficient: no other arm is as cheap and as accurate, and better in one.

    Args:
        arms: columns seconds and test_accuracy.
    """

    def is_efficient(arm: pd.Series) -> bool:
        as_good = (arms["seconds"] <= arm["seconds"]) & (arms["test_accuracy"] >= arm["test_accuracy"])
        better = (arms["seconds"] < arm["seconds"]) | (arms["test_accuracy"] > arm["test_accuracy"])
        return not (as_good & better).any()

    return pd.Series([is_efficient(arm) for _, arm in arms.iterrows()], arms.index, dtype=bool)


def plot_differences(comparison: dict, *, first: str = "frozen", second: str = "fine-tuned") -> DescribedFigure:
    """Returns the differences in test accuracy, pair by pair, with their mean and its 95 % interval.

    Args:
        comparison: `compare_pairs(first, second)`: difference, low, high, margin and differences (one for each
            pair), all fractions; pairs and images, counts. Empty where there were too few pairs.
        first: name of the arm that is subtracted.
        second: name of the other arm.
    """
    if not comparison:
        return say("There are fewer than two pairs to compare.")
    points = 100 * np.asarray(comparison["differences"], dtype=float)
    mean, low, high, margin = (100 * comparison[key] for key in ("difference", "low", "high", "margin"))
    values = np.array([*points, mean, low, high, 1.3 * margin, 0.5])
    reach = 1.15 * np.abs(values[np.isfinite(values)]).max()
    figure = new_figure(7, 4)
    axes = figure.subplots()
    axes.axvspan(-margin, margin, color="0.9", label="too small to matter")
    axes.axvline(0, color="black", linewidth=1)
    rows = np.arange(1, len(points) + 1)
    axes.plot(points, rows, "o", color="black", markerfacecolor="white", markersize=6, label="one pair", zorder=3)
    below = min(0, 1 - 0.1 * len(points))
    axes.plot([low, high], [below, below], color="0.3", linewidth=3)
    axes.plot(mean, below, "D", color="black", markersize=9, label="mean, with its 95 % interval")
    room = 0.14 * (len(points) + 1)
    axes.set_ylim(below - 0.6 - 0.3 * room, len(points) + 0.4 + room)
    step = -(-len(points) // 10)
    axes.set_yticks([below, *rows[::step]], ["mean", *map(str, rows[::step])])
    short = {name: shorten(name, most=26) for name in (first, second)}
    for side, name, align in ((0.01, short[first], "left"), (0.99, short[second], "right")):
        axes.text(side, 0.98, f"{name} better", ha=align, va="top", style="italic", transform=axes.transAxes)
    axes.set(
        xlim=(-reach, reach),
        xlabel=f"test accuracy: {short[second]} minus {short[first]}, points",
        ylabel="pair (same split, same seed)",
        title=f"{comparison['pairs']} pairs of trainings, judged on {comparison['images']} test images",
    )
    figure.legend(loc="outside lower center", ncols=3)
    figure.description = (
        f"Test accuracy, {second} minus {first}, of {comparison['pairs']} pairs on {comparison['images']} images: "
        f"{mean:+z.1f} points on average, 95 % interval {low:+z.1f} to {high:+z.1f}; the pairs from "
        f"{np.nanmin(points):+z.1f} to {np.nanmax(points):+z.1f}. Up to {margin:.1f} points are too small to matter."
    )
    return figure
