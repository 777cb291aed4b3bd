"""The verdict at a glance, and the arms in rows of texts."""

COLUMNS = ("arm", "test accuracy", "95 % interval", "seconds", "trainable weights")

NOTHING = "–"


def summary_rows(metrics: dict) -> list[tuple[str, ...]]:
    """Returns a row of texts for each arm, in the order of `ARMS`, with the columns of `COLUMNS`.

    Where 04 has results over several splits and seeds, they stand for those of 02 and 03.
    """
    from helpers.evaluation import results_table  # here: SciPy takes a second, and most commands need no table

    table = results_table(_arms(metrics))
    return [(row[0], *(text or NOTHING for text in row[1:])) for row in table.itertuples()]


def _arms(metrics: dict) -> dict:
    """Returns the arms in the order of `helpers.evaluation.metrics.ARMS`, and any others behind them."""
    from helpers.evaluation.metrics import ARMS

    arms = metrics.get("study") or metrics.get("arms", {})
    order = [name for name in ARMS if name in arms] + [name for name in arms if name not in ARMS]
    return {name: arms[name] for name in order}


def headline(verdict: dict) -> str:
    """Returns the headline of what `verdict.json` holds; "No verdict yet." without one."""
    return verdict.get("headline") or "No verdict yet."


def chosen_arm(verdict: dict) -> dict:
    """Returns the results of the arm that the verdict chose; empty without one."""
    return verdict.get("arms", {}).get(verdict.get("chosen"), {})


def key_facts(verdict: dict) -> list[tuple[str, str, str]]:
    """Returns the numbers to be seen at a glance: what each is, its value, its interval or its counterpart."""
    facts, arms = [], verdict.get("arms", {})
    if chosen := chosen_arm(verdict):
        interval = "no interval from a single training"
        if "low" in chosen:
            interval = f"95 % interval {100 * chosen['low']:.1f} to {100 * chosen['high']:.1f} %"
        name = f"Test accuracy of the chosen arm, {verdict['chosen']}"
        facts.append((name, f"{100 * chosen['test_accuracy']:.1f} %", interval))
    if comparison := verdict.get("comparison"):
        difference = f"{100 * comparison['difference']:+.1f} points"
        facts.append(("Accuracy, fine-tuned minus frozen", difference, points_interval(comparison)))
    if {"frozen", "fine-tuned"} <= set(arms):
        frozen, tuned = (f"{arms[name]['seconds']:.1f} s" for name in ("frozen", "fine-tuned"))
        facts.append(("Time to train, frozen", frozen, f"fine-tuned: {tuned}"))
    return facts


def points_interval(comparison: dict) -> str:
    """Returns a difference's interval in points."""
    return f"95 % interval {100 * comparison['low']:+.1f} to {100 * comparison['high']:+.1f}"


def result_table(metrics: dict) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns columns and rows of texts: what each arm reached, and how far from the frozen one, in points."""
    arms, rows = _arms(metrics), []
    for name, accuracy, interval, *_ in summary_rows(metrics):
        arm, gained, between = arms[name], NOTHING, NOTHING
        if "difference_low" in arm:
            gained = f"{100 * arm['difference']:+.1f}"
            between = f"{100 * arm['difference_low']:+.1f} to {100 * arm['difference_high']:+.1f}"
        rows.append((name, accuracy, interval, gained, between))
    return _without_empty([*COLUMNS[:3], "minus frozen, points", "its 95 % interval"], rows)


def cost_table(metrics: dict) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns columns and rows of texts: each arm's cut, first stage that learns, and rate; and what it costs."""
    formats = {
        "cut": "{}",
        "stage": "{}",
        "learning_rate": "{:g}",
        "seconds": "{:.1f}",
        "trainable_weights": "{:,.0f}",
        "memory_mb": "{:.1f}",
    }
    rows = []
    for name, arm in _arms(metrics).items():
        known = {key: value for key, value in arm.items() if value not in ("", None)}
        if not arm.get("learning_rate"):
            known.pop("learning_rate", None)  # nothing is fine-tuned
        rows.append((name, *(text.format(known[key]) if key in known else NOTHING for key, text in formats.items())))
    columns = ["arm", "cut at", "unfrozen from", "learning rate", "seconds", "trainable weights", "memory, MB"]
    return _without_empty(columns, rows)


def _without_empty(columns: list[str], rows: list[tuple[str, ...]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns the table without columns that say nothing."""
    kept = [number for number in range(len(columns)) if any(row[number] != NOTHING for row in rows)]
    return [columns[number] for number in kept], [tuple(row[number] for number in kept) for row in rows]
