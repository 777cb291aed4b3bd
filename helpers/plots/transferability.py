"""The curves of the transferability experiment."""

import numpy as np
import pandas as pd

from helpers.plots.figures import DescribedFigure, new_figure

_STYLES = {
    "BnB": ("#1f4e9c", "-", "o", -0.12),
    "BnB+": ("#7fa7dd", "--", "s", -0.04),
    "AnB": ("#b3261e", "-", "D", 0.04),
    "AnB+": ("#e8998f", "--", "^", 0.12),
}
"""Of each arm: colour, line, marker, and a shift, so that intervals at one n do not cover each other."""


def plot_transfer(summary: pd.DataFrame, *, longer: pd.DataFrame | None = None) -> DescribedFigure:
    """Returns the four curves over the number of copied layers, a panel for each network, on one scale.

    Args:
        summary: rows of `summarize_transfer`, of one network or several: network, arm, n, difference, low, high
            (fractions). Arms that are no curve of the paper are left out.
        longer: the rows of the base that was trained twice as long; where a network has one, it is a band.
    """
    curves = summary[summary["arm"].isin(_STYLES)]
    networks = list(dict.fromkeys(curves["network"]))
    figure = new_figure(max(4.2 * len(networks), 6), 4.2)
    panels = np.atleast_1d(figure.subplots(1, len(networks), sharey=True, squeeze=False)[0])
    for axes, network in zip(panels, networks, strict=True):
        rows = curves[curves["network"] == network]
        axes.axhline(0, color="0.3", linewidth=1)
        if longer is not None:
            for band in longer[longer["network"] == network].itertuples():
                axes.axhspan(100 * band.low, 100 * band.high, color="0.9", zorder=0)
                axes.axhline(100 * band.difference, color="0.6", linestyle=":", label="base, twice as long")
        for arm, (color, line, marker, shift) in _STYLES.items():
            points = rows[rows["arm"] == arm].sort_values("n")
            if points.empty:
                continue
            mean, low, high = (100 * points[name].to_numpy(float) for name in ("difference", "low", "high"))
            reach = np.nan_to_num(np.clip([mean - low, high - mean], 0, None))
            style = {"color": color, "linestyle": line, "marker": marker, "markersize": 5, "capsize": 2}
            axes.errorbar(points["n"] + shift, mean, yerr=reach, elinewidth=1, label=arm, **style)
        axes.set(title=network, xlabel="n, layers copied")
        axes.set_xticks(sorted(rows["n"].unique()))
        axes.grid(axis="y", color="0.93")
    panels[0].set_ylabel("accuracy, points above base B\n(95 % interval over splits)")
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    figure.description = (
        "Accuracy above each split's own base, in points, over the number of copied layers. "
        + " ".join(
            f"{network}, {arm}: {_listed(curves, network, arm)}."
            for network in networks
            for arm in _STYLES
            if ((curves["network"] == network) & (curves["arm"] == arm)).any()
        )
    )
    return figure


def _listed(curves: pd.DataFrame, network: str, arm: str) -> str:
    rows = curves[(curves["network"] == network) & (curves["arm"] == arm)].sort_values("n")
    return ", ".join(f"{row.n}: {100 * row.difference:+z.1f}" for row in rows.itertuples())
