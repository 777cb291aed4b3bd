"""What the transferability experiment's results say: differences over splits, in tables and in words."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pandas as pd

from helpers import resolve_path
from helpers.evaluation.intervals import mean_interval


def published_results() -> pd.DataFrame:
    """Returns what the paper's authors published, a row for each network (data/how_transferable_published.yaml)."""
    return pd.read_csv(resolve_path("data/how_transferable_published.csv"))


def summarize_transfer(results: pd.DataFrame) -> pd.DataFrame:
    """Returns each arm's difference to the base of its own split, over the splits: a row for each network, arm and n.

    The columns are network, arm, n, splits (count), accuracy and difference (means), low, high (its 95 % interval
    over the splits), contains_zero (whether 0 lies in it; not where there is no interval).
    """
    rows = []
    for (network, n, arm), group in results.groupby(["network", "n", "arm"], sort=False):
        mean, low, high = mean_interval(group["difference"])
        row = {"network": network, "arm": arm, "n": n, "splits": int(group["difference"].notna().sum())}
        rows.append(row | {"accuracy": group["accuracy"].mean(), "difference": mean, "low": low, "high": high})
    return _with_zero(pd.DataFrame(rows))


def _with_zero(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(contains_zero=(table["low"] <= 0) & (table["high"] >= 0))


def describe_transfer(summary: pd.DataFrame) -> str:
    """Returns a sentence for each row of `summarize_transfer`; it names the network where there are several."""
    lines, several = [], summary["network"].nunique() > 1
    for row in summary.itertuples():
        difference, low, high = (f"{100 * value:+z.1f}" for value in (row.difference, row.low, row.high))
        name = (f"{row.network}, " if several else "") + row.arm + (f" at n={row.n}" if row.n else "")
        interval = f"the interval, {low} to {high}, {'includes' if row.contains_zero else 'does not include'} 0."
        if np.isnan(row.low):
            interval = "of one network, so without an interval."
        lines.append(f"{name}: {difference} points; {interval}")
    return "\n".join(lines)


def compare_arms(results: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Returns by how much the second arm is better than the first one, paired by split and n.

    For each network there is a row for each n, and at the end one for their mean ("all"), with the columns network,
    n, difference, low, high (95 % interval over the splits), contains_zero.
    """
    rows = []
    for network, part in results.groupby("network", sort=False):
        table = part.pivot(index="split", columns=["arm", "n"], values="difference")
        paired = (table[second] - table[first]).dropna(axis=1, how="all")
        rows += [(network, n, *mean_interval(paired[n])) for n in paired]
        rows.append((network, "all", *mean_interval(paired.mean(axis=1, skipna=False))))
    return _with_zero(pd.DataFrame(rows, columns=["network", "n", "difference", "low", "high"]))


def compare_runs(results: pd.DataFrame, first: str, second: str, *, layers: Sequence[int]) -> dict:
    """Returns by how much the second arm is better than the first one where there are no pairs: over all networks.

    `layers` are the n that count in the results, such as `published_results`. Returns the difference of the means, a
    fraction; error, its standard error; and networks, how many there are of each arm.
    """
    rows = results[results["n"].isin(list(layers))]
    one, other = (rows.loc[rows["arm"] == arm, "difference"].to_numpy() for arm in (first, second))
    error = sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return {"difference": float(other.mean() - one.mean()), "error": error, "networks": (len(one), len(other))}


def compare_costs(results: pd.DataFrame) -> pd.DataFrame:
    """Returns the seconds of the frozen arms beside those of their "+" twins, the medians over the splits.

    A DataFrame indexed by arm, network and n, with the columns frozen, all_learn (seconds) and share.
    """
    seconds = results.pivot_table(index=["network", "n"], columns="arm", values="seconds", aggfunc="median")
    twins = {arm: {"frozen": seconds[arm], "all_learn": seconds[f"{arm}+"]} for arm in ("BnB", "AnB")}
    table = pd.concat({arm: pd.DataFrame(columns) for arm, columns in twins.items()}, names=["arm"]).dropna()
    return table.assign(share=table["frozen"] / table["all_learn"])
