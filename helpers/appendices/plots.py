"""The figures of A2 (the curves of the transferability experiment) and of A3 (pretraining without labels)."""

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from helpers.plots.figures import DescribedFigure, draw_intervals, new_figure

_STYLES = {
    "BnB": ("#1f4e9c", "-", "o", -0.12),
    "BnB+": ("#7fa7dd", "--", "s", -0.04),
    "AnB": ("#b3261e", "-", "D", 0.04),
    "AnB+": ("#e8998f", "--", "^", 0.12),
}
"""Of each arm: colour, line, marker, and a shift, so that intervals at one n do not cover each other."""

_LONGER = "base B, twice as long"


def plot_transfer(summary: pd.DataFrame) -> DescribedFigure:
    """Returns the four curves of `summarize_transfer` over the number of copied layers, a panel for each network.

    The base that was trained twice as long is a band. Arms that are no curve of the paper are left out.
    """
    curves = summary[summary["arm"].isin(_STYLES)]
    networks = list(dict.fromkeys(curves["network"]))
    figure = new_figure(max(4.2 * len(networks), 6), 4.2)
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        of_network = summary[summary["network"] == network]
        rows = curves[curves["network"] == network]
        axes.axhline(0, color="0.3", linewidth=1)
        for band in of_network[of_network["arm"] == _LONGER].itertuples():
            axes.axhspan(100 * band.low, 100 * band.high, color="0.9", zorder=0)
            axes.axhline(100 * band.difference, color="0.6", linestyle=":", label="base, twice as long")
        for arm, (color, line, marker, shift) in _STYLES.items():
            points = rows[rows["arm"] == arm].sort_values("n")
            style = {"color": color, "ecolor": color, "linestyle": line, "marker": marker, "markersize": 5}
            style |= {"elinewidth": 1, "capsize": 2, "label": arm}
            spans = 100 * points[["low", "high"]]
            draw_intervals(axes, points["n"] + shift, 100 * points["difference"], spans, **style)
        axes.set(title=network, xlabel="n, layers copied")
        axes.set_xticks(sorted(rows["n"].unique()))
        axes.grid(axis="y", color="0.93")
    panels[0].set_ylabel("accuracy, points above base B\n(95 % interval over splits)")
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    texts = ["Accuracy above each split's own base, in points, over the number of copied layers."]
    for (network, arm), part in curves.sort_values("n", kind="stable").groupby(["network", "arm"], sort=False):
        points = ", ".join(f"{row.n}: {100 * row.difference:+z.1f}" for row in part.itertuples())
        texts.append(f"{network}, {arm}: {points}.")
    figure.description = " ".join(texts)
    return figure


def plot_pretraining(history: dict[str, list[float]], *, candidates: int) -> DescribedFigure:
    """Returns the share of images whose other view is found, over epochs, for training and held-out images.

    Args:
        history: `Checkpoint.history` from `pretrain`, with partner_found and val_partner_found.
        candidates: among how many the other view of a held-out image is to be found.
    """
    figure = new_figure(5.5, 3.2)
    axes = figure.subplots()
    learned, held_out = (100 * np.array(history.get(f"{part}partner_found", [])) for part in ("", "val_"))
    epochs = np.arange(1, len(held_out) + 1)
    axes.plot(epochs, learned, "--", color="0.5", marker="o", label="train")
    axes.plot(epochs, held_out, "-", color="black", marker="o", label="held out")
    axes.axhline(100 / candidates, color="0.7", linestyle=":", label="guessing")
    axes.set(xlabel="epoch", ylabel="other view found (%)", ylim=(-2, 102))
    axes.set_title(f"Is an image's other view found among {candidates}?")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    ends = f": of held-out ones, {held_out[0]:.0f} % after the first, {held_out[-1]:.0f} % after the last"
    figure.description = (
        f"Curves over {len(epochs)} epochs of the share of images whose other view is found among {candidates}"
        f"{ends if len(epochs) else ''}."
    )
    return figure
