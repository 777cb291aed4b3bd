"""The study: from which stage on to fine-tune, at what learning rate, and whether it pays."""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from helpers.plots.figures import (
    STYLES,
    DescribedFigure,
    describe_accuracy,
    draw_intervals,
    label_log_axis,
    new_axes,
    shorten,
    text_figure,
)

_MARKERS = "osD^vP*X"
"""Of arms that are drawn side by side."""


# ---- over depth


def plot_probe(probe: pd.DataFrame, taken: str) -> DescribedFigure:
    """Returns the log-loss of a linear head over the depth of the cut (`probe_depth`); `taken` is the chosen cut."""
    known = probe[np.isfinite(probe["log_loss"])]
    if known.empty:
        return text_figure("With so few images of a class, nothing can be cross-validated.")
    figure, axes = new_axes(8, 4)
    style = {"color": "black", "marker": "o", "markerfacecolor": "white", "capsize": 3, "elinewidth": 1}
    style["label"] = "its difference to the lowest: one standard error"
    axes.errorbar(known["cost"], known["log_loss"], yerr=known["error"].fillna(0), **style)
    chosen = known[known["cut"] == taken]
    axes.plot(chosen["cost"], chosen["log_loss"], "D", color="black", markersize=10, label=f"taken: {shorten(taken)}")
    axes.set(xlabel="share of the network's cost up to the cut (1: all layers are taken)")
    axes.set(ylabel="log-loss, cross-validated", yscale="log")
    axes.set_title("What each depth of the frozen network knows: lower is better")
    label_log_axis(axes.yaxis)
    _name_depths(axes, dict(zip(probe["cut"], probe["cost"], strict=True)), first={taken})
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    best = known.loc[known["log_loss"].idxmin()]
    figure.description = (
        f"Cross-validated log-loss of a linear head over the depth of the cut ({len(known)} cut points): lowest at "
        f"{best['cut']}, {best['log_loss']:.3f}; with all layers {known.iloc[-1]['log_loss']:.3f}. Taken: {taken}."
    )
    return figure


def plot_depth(probe: pd.DataFrame, race: pd.DataFrame) -> DescribedFigure:
    """Returns the accuracy on validation images over depth: cut and frozen there, and fine-tuned from there on.

    `probe` has a row per cut point (`probe_depth`), `race` one per arm and rung (`Study.race`). For each stage the
    arm with the lowest log-loss of those that went through most rungs is shown.
    """
    probe = probe.sort_values("cost", ignore_index=True)
    tuned = _rank(race).drop_duplicates("stage").sort_values("cost_before")
    diverged = race[~race["stage"].isin(tuned["stage"])].drop_duplicates("stage")
    figure, axes = new_axes(8, 4.5)
    axes.plot(probe["cost"], probe["accuracy"], "o-", color="black", label="frozen: cut here, with a linear head")
    style = {"marker": "D", "linestyle": "--", "markerfacecolor": "white"}
    style["label"] = "fine-tuned from here on, at its best rate and cut"
    draw_intervals(axes, tuned["cost_before"], tuned["accuracy"], tuned[["low", "high"]], **style)
    if len(diverged):
        style = {"color": "black", "clip_on": False, "transform": axes.get_xaxis_transform(), "label": "diverged"}
        axes.plot(diverged["cost_before"], np.zeros(len(diverged)), "X", **style)
    axes.set(xlabel="share of the network's cost up to here", ylabel="accuracy on validation images")
    axes.set_title("Accuracy over depth: cut and frozen here, or fine-tuned from here on")
    places = dict(zip([*race["stage"], *probe["cut"]], [*race["cost_before"], *probe["cost"]], strict=True))
    _name_depths(axes, places, first=set(race["stage"]))
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    told = [f"frozen, cut before {row.cut}: {row.accuracy:.3f}" for row in probe.dropna().itertuples()]
    told += [f"fine-tuned from {row.stage} on: {row.accuracy:.3f}" for row in tuned.itertuples()]
    told += [f"diverged: {stage}" for stage in diverged["stage"]]
    figure.description = f"Accuracy on validation images over depth. {'; '.join(told) or 'Nothing is known'}."
    return figure


def _name_depths(axes, places: dict[str, float], first: set[str]) -> None:
    """Writes cut points and stages above the axes, those that fit side by side; the `first` have precedence."""
    kept: list[str] = []
    for name in sorted(places, key=lambda name: (name not in first, places[name])):
        if all(abs(places[name] - places[other]) >= 0.028 for other in kept):  # the width of a name written upwards
            kept.append(name)
    names = [shorten(name) for name in kept]
    axes.secondary_xaxis("top").set_xticks([places[name] for name in kept], names, rotation=90, fontsize=8)
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="y", color="0.9")


def _rank(race: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that did not diverge, the best first: of the last rung the lowest log-loss."""
    finite = race[np.isfinite(race["log_loss"].astype(float))]
    return finite.sort_values(["rung", "log_loss"], ascending=[False, True])


# ---- the race


def plot_rates(race: pd.DataFrame) -> DescribedFigure:
    """Returns a heat map of the validation log-loss, cuts and stages by learning rates.

    Shades compare all arms at their first rung, on the same images; below, for those that raced on, stands the mean
    over all splits.
    `race` has a row per arm and rung (`Study.race`), whose log-loss is infinite or NaN if it diverged.
    """
    if race.empty:
        return text_figure("No arm has raced.")
    arm = ["cut", "stage", "learning_rate"]
    rungs = race.sort_values(["rung", "cost_before"], kind="stable", ignore_index=True)
    first, last = (rungs.drop_duplicates(arm, keep=keep).set_index(arm) for keep in ("first", "last"))
    cuts, stages = list(race["cut"].unique()), list(race.sort_values("cost_before")["stage"].unique())
    columns = [(cut, stage) for cut in cuts for stage in stages if (cut, stage) in first.index.droplevel(2)]
    rates = sorted(race["learning_rate"].unique())
    figure, axes = new_axes(8, min(max(2 + 0.5 * len(rates), 3.5), 8))
    _draw_cells(axes, first, last, columns, rates)
    ranked = _rank(last.reset_index())
    told = "All diverged."
    if len(ranked):
        loss, cut, stage, rate = ranked[["log_loss", *arm]].iloc[0]
        corner = columns.index((cut, stage)) - 0.46, rates.index(rate) - 0.46
        for color, width in (("white", 6), ("black", 3)):  # seen on dark cells and on light ones
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=color, linewidth=width))
        told = f"Best: {loss:.3f}, cut before {cut}, from {stage} on at rate {rate:g}."
        told += f" {len(last) - len(ranked)} diverged." if len(ranked) < len(last) else ""
    labels = [f"{shorten(stage)}\ncut before {shorten(cut)}" for cut, stage in columns]
    tilt = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, labels)) > 90 else {}
    axes.set_xticks(range(len(columns)), labels, **tilt)
    axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set(xlabel="first stage that is fine-tuned, and where the network is cut", ylabel="learning rate")
    title = f"Log-loss on validation images after {first['steps'].min()} steps: darker is better"
    axes.set_title(f"{title}\nframed: the best of those that raced on")
    figure.description = f"Heat map of the validation log-loss by cut, stage and learning rate. {told}"
    return figure


def _draw_cells(axes, first: pd.DataFrame, last: pd.DataFrame, columns: list, rates: list) -> None:
    """Draws a cell for each arm, shaded by its log-loss at the first rung."""
    losses = first["log_loss"].astype(float)
    worth = np.log(losses[np.isfinite(losses)].clip(lower=1e-4))  # so that one arm far off leaves the others apart
    darkest, span = worth.min(), max(worth.max() - worth.min(), 1e-9)
    shades = np.full((len(rates), len(columns)), np.nan)
    style = {"fontsize": 7, "rotation": 90} if len(columns) > 9 else {"fontsize": 9}
    for key, start in first.iterrows():
        cut, stage, rate = key
        row, column, end = rates.index(rate), columns.index((cut, stage)), last.loc[key]
        text = _describe_loss(start["log_loss"])
        if end["rung"] > start["rung"]:
            text += f"\n{end['splits']:g} splits: {_describe_loss(end['log_loss'])}"
        if np.isfinite(start["log_loss"]):
            shades[row, column] = 0.2 + 0.75 * (worth[key] - darkest) / span
        color = "white" if shades[row, column] < 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, **style)
    axes.imshow(shades, cmap="gray", vmin=0, vmax=1, origin="lower", aspect="auto")


def _describe_loss(loss: float) -> str:
    return "diverged" if not np.isfinite(loss) else f"{loss:.3f}" if loss < 100 else f"{loss:.0e}"


# ---- the final


def plot_costs(arms: pd.DataFrame) -> DescribedFigure:
    """Returns the arms' test accuracies over the seconds of one training (`summarize`); arms without are left out."""
    arms = arms[(arms["seconds"] > 0) & np.isfinite(arms["seconds"]) & arms["test_accuracy"].notna()]
    if arms.empty:
        return text_figure("No arm was trained.")
    arms = arms.sort_values(["seconds", "test_accuracy"])
    efficient = pareto_front(arms)
    figure, axes = new_axes(8, 4.5)
    told = []
    for number, (name, arm) in enumerate(arms.iterrows()):
        style = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 8, "linestyle": "none"}
        style |= {"markerfacecolor": "black" if efficient[name] else "white", "label": shorten(name, most=36)}
        spans = 100 * np.array([[arm["low"], arm["high"]]])
        draw_intervals(axes, [arm["seconds"]], [100 * arm["test_accuracy"]], spans, **style)
        seconds = f"{arm['seconds']:.{0 if arm['seconds'] >= 100 else 1}f} s"
        learning = f"{arm['trainable_weights']:,.0f} trainable weights"
        told.append(f"{name} {describe_accuracy(arm)} in {seconds} with {learning}")
    room = max(arms["seconds"].max() / arms["seconds"].min(), 30) ** 0.1
    low, high = arms["seconds"].min() / room, arms["seconds"].max() * room
    front = arms[efficient]
    steps = [*front["seconds"], high], [*(100 * front["test_accuracy"]), 100 * front["test_accuracy"].iloc[-1]]
    label = "efficient: no other arm is cheaper and as accurate"
    axes.step(*steps, "--", where="post", color="0.3", zorder=1, label=label)
    axes.set(xscale="log", xlim=(low, high), title="Accuracy against cost")
    axes.set(xlabel="training time (seconds, logarithmic)", ylabel="test accuracy (%), with its 95 % interval")
    label_log_axis(axes.xaxis, (1, 2, 5) if high / low < 10_000 else (1,))
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=3)
    figure.description = (
        f"Test accuracy with 95 % interval against training time: {'; '.join(told)}. Efficient: "
        f"{', '.join(front.index)}."
    )
    return figure


def pareto_front(arms: pd.DataFrame) -> pd.Series:
    """Returns whether each arm is on the Pareto front: no other is as cheap and as accurate, and better in one."""
    seconds, accuracy = arms["seconds"].to_numpy(), arms["test_accuracy"].to_numpy()
    # [i, j]: arm j beats arm i
    as_good = (seconds <= seconds[:, None]) & (accuracy >= accuracy[:, None])
    better = (seconds < seconds[:, None]) | (accuracy > accuracy[:, None])
    return pd.Series(~(as_good & better).any(axis=1), arms.index)


def plot_differences(comparison: dict) -> DescribedFigure:
    """Returns the differences in test accuracy, pair by pair, with their mean and its 95 % interval.

    `comparison` is `compare_pairs` of frozen and fine-tuned; empty for fewer than two pairs.
    """
    if not comparison:
        return text_figure("There are fewer than two pairs to compare.")
    points = 100 * np.asarray(comparison["differences"], dtype=float)
    mean, low, high, margin = (100 * comparison[key] for key in ("difference", "low", "high", "margin"))
    values = np.array([*points, mean, low, high, 1.3 * margin, 0.5])
    reach = 1.15 * np.abs(values[np.isfinite(values)]).max()
    figure, axes = new_axes(7, 4)
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
    for side, name, align in ((0.01, "frozen", "left"), (0.99, "fine-tuned", "right")):
        axes.text(side, 0.98, f"{name} better", ha=align, va="top", style="italic", transform=axes.transAxes)
    axes.set(xlim=(-reach, reach), xlabel="test accuracy: fine-tuned minus frozen, points")
    axes.set_ylabel("pair (same split, same seed)")
    axes.set_title(f"{comparison['pairs']} pairs of trainings, judged on {comparison['images']} test images")
    figure.legend(loc="outside lower center", ncols=3)
    figure.description = (
        f"Test accuracy, fine-tuned minus frozen, of {comparison['pairs']} pairs on {comparison['images']} images: "
        f"{mean:+z.1f} points on average, 95 % interval {low:+z.1f} to {high:+z.1f}; the pairs from "
        f"{np.nanmin(points):+z.1f} to {np.nanmax(points):+z.1f}. Up to {margin:.1f} points are too small to matter."
    )
    return figure


# ---- the labels


def plot_labels(table: pd.DataFrame) -> DescribedFigure:
    """Returns both arms' test accuracies over the number of training images (`LabelCurve.table`)."""
    figure, axes = new_axes(8, 4.5)
    told, counts = [], sorted(table.loc[~table["extrapolated"], "labels"].unique())
    for (name, rows), style, aside in zip(table.groupby("arm", sort=False), STYLES, (0.98, 1.02), strict=False):
        rows = rows.assign(test_accuracy=100 * rows["test_accuracy"], low=100 * rows["low"], high=100 * rows["high"])
        known, ahead = rows[~rows["extrapolated"]], rows[rows["extrapolated"]]
        place = known["labels"] * aside  # so that one arm's interval does not hide the other's
        draw_intervals(axes, place, known["test_accuracy"], known[["low", "high"]], **style, label=name)
        beyond = {"marker": style["marker"], "markerfacecolor": "white", "linestyle": "none", "color": "0.5"}
        draw_intervals(axes, ahead["labels"] * aside, ahead["test_accuracy"], ahead[["low", "high"]], **beyond)
        joined = pd.concat([known.tail(1), ahead])
        axes.plot(joined["labels"] * aside, joined["test_accuracy"], color="0.6", linestyle=(0, (1, 3)))
        told.append(
            f"{name}: " + ", ".join(f"{row.test_accuracy:.1f} % at {row.labels:,}" for row in rows.itertuples())
        )
    last = table.loc[table["extrapolated"], "labels"].iloc[0]
    axes.axvspan(last / 2**0.5, last * 2**0.5, color="0.93", zorder=0, label="extrapolated, with its 90 % interval")
    axes.set(xscale="log", xlabel="training images (logarithmic)", ylabel="test accuracy (%), with its 95 % interval")
    axes.set_xlim(counts[0] / 1.3, last * 2**0.5)
    axes.set_xticks([*counts, last], [f"{count:,}" for count in [*counts, last]])
    axes.minorticks_off()
    axes.set_title("Accuracy over the number of labels")
    axes.grid(axis="y", color="0.9")
    figure.legend(loc="outside lower center", ncols=3)
    figure.description = (
        f"Test accuracy over the number of training images; the last is extrapolated. {'; '.join(told)}."
    )
    return figure
