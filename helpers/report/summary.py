"""The verdict in a line, and the arms in rows of texts."""

from helpers.report.record import Record

COLUMNS = ("arm", "test accuracy", "95 % interval", "seconds", "trainable weights")

NOTHING = "–"


def summary_rows(metrics: dict) -> list[tuple[str, ...]]:
    """Returns a row of texts for each arm, in the order of `helpers.evaluation.ARMS`, with the columns of `COLUMNS`.

    Where 04 has results over several splits and seeds, they stand for those of 02 and 03.
    """
    from helpers.evaluation import results_table  # here: SciPy takes a second, and most commands need no table

    table = results_table(ordered_arms(metrics.get("study") or metrics.get("arms", {})))
    return [(row[0], *(text or NOTHING for text in row[1:])) for row in table.itertuples()]


def ordered_arms(arms: dict) -> dict:
    """Returns the arms in the order of `helpers.evaluation.ARMS`, and any others behind them."""
    from helpers.evaluation import ARMS

    order = [name for name in ARMS if name in arms] + [name for name in arms if name not in ARMS]
    return {name: arms[name] for name in order}


def describe_verdict_briefly(verdict: dict) -> str:
    """Returns the verdict's headline; "No verdict yet." without one.

    Args:
        verdict: what `verdict.json` holds.
    """
    return verdict.get("headline") or "No verdict yet."


def chosen_arm(verdict: dict) -> dict:
    """Returns the results of the arm that the verdict chose; empty without one."""
    return verdict.get("arms", {}).get(verdict.get("chosen"), {})


def key_facts(record: Record) -> list[tuple[str, str, str]]:
    """Returns the numbers to be seen at a glance: what each is, its value, its interval or its counterpart."""
    verdict, facts = record.verdict, []
    if chosen := chosen_arm(verdict):
        name = f"Test accuracy of the chosen arm, {verdict['chosen']}"
        facts.append((name, f"{100 * chosen['test_accuracy']:.1f} %", percent_interval(chosen)))
    if comparison := verdict.get("comparison"):
        difference = f"{100 * comparison['difference']:+.1f} points"
        facts.append(("Accuracy, fine-tuned minus frozen", difference, points_interval(comparison)))
    arms = verdict.get("arms", {})
    if {"frozen", "fine-tuned"} <= set(arms):
        frozen, tuned = arms["frozen"], arms["fine-tuned"]
        facts.append(("Time to train, frozen", f"{frozen['seconds']:.1f} s", f"fine-tuned: {tuned['seconds']:.1f} s"))
    return facts


def percent_interval(arm: dict) -> str:
    """Returns an accuracy's interval in per cent."""
    if "low" not in arm:
        return "no interval from a single training"
    return f"95 % interval {100 * arm['low']:.1f} to {100 * arm['high']:.1f} %"


def points_interval(comparison: dict) -> str:
    """Returns a difference's interval in points."""
    return f"95 % interval {100 * comparison['low']:+.1f} to {100 * comparison['high']:+.1f}"


def result_table(record: Record) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns columns and rows of texts: what each arm reached, and how far from the frozen one, in points."""
    arms, rows = _arms(record), []
    for name, accuracy, interval, *_ in summary_rows(record.metrics):
        arm, gained, between = arms[name], NOTHING, NOTHING
        if "difference_low" in arm:
            gained = f"{100 * arm['difference']:+.1f}"
            between = f"{100 * arm['difference_low']:+.1f} to {100 * arm['difference_high']:+.1f}"
        rows.append((name, accuracy, interval, gained, between))
    return _without_empty([*COLUMNS[:3], "minus frozen, points", "its 95 % interval"], rows)


def cost_table(record: Record) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns columns and rows of texts: each arm's cut, first stage that learns, and rate; and what it costs."""
    formats = {
        "learning_rate": lambda rate: f"{rate:g}" if rate else NOTHING,
        "seconds": "{:.1f}".format,
        "trainable_weights": "{:,.0f}".format,
        "memory_mb": "{:.1f}".format,
    }
    rows = []
    for name, arm in _arms(record).items():
        numbers = (shown(arm[key]) if key in arm else NOTHING for key, shown in formats.items())
        rows.append((name, str(arm.get("cut") or NOTHING), str(arm.get("stage") or NOTHING), *numbers))
    columns = ["arm", "cut at", "unfrozen from", "learning rate", "seconds", "trainable weights", "memory, MB"]
    return _without_empty(columns, rows)


def _arms(record: Record) -> dict:
    return ordered_arms(record.metrics.get("study") or record.metrics.get("arms", {}))


def _without_empty(columns: list[str], rows: list[tuple[str, ...]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns the table without columns that say nothing."""
    kept = [number for number in range(len(columns)) if any(row[number] != NOTHING for row in rows)]
    return [columns[number] for number in kept], [tuple(row[number] for number in kept) for row in rows]
