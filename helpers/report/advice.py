"""What to do next, from what a run has found: sentences for who decides."""

from helpers.report.run_folder import RunFolder, make_assignments

SURE = 0.9
"""Probability of a wrong class from which on the label is worth a look."""

LOSS = 0.1
"""Accuracy lost on mildly corrupted images that is worth a sentence."""

GOOD = 0.95
"""Accuracy below which another network is worth a try."""


def next_steps(folder: RunFolder) -> list[str]:
    """Returns what the run's tables suggest, the most useful first; empty before 05 has looked at the mistakes."""
    if not folder.verdict or folder.classes is None:
        return []
    steps = [
        *_relabel(folder),
        *_collect(folder.classes),
        *_label(folder.labels),
        *_decide(folder.verdict),
        *_harden(folder.corruptions),
        *_change_network(folder.verdict, folder.parameters),
    ]
    steps = steps or [
        "Nothing stands out. Test the classifier on images from where it will be used (SHIFTED=folder)."
    ]
    if folder.labels or not folder.verdict.get("comparison"):
        return steps
    return [
        *steps,
        f"To see whether more labels would pay off: make labels {make_assignments({'NAME': folder.run.name})}",
    ]


def _relabel(folder: RunFolder) -> list[str]:
    steps = []
    if folder.problems is not None:
        doubtful = folder.problems[folder.problems["problem"].isin(["two labels", "similar, two labels"])]
        if len(doubtful):
            files = _files(doubtful["path"])
            steps.append(
                f"Decide which label is right for {files}: the same or nearly the same image has two labels."
            )
    if folder.mistakes is not None:
        sure = folder.mistakes[folder.mistakes["probability"].astype(float) >= SURE]
        if len(sure):
            first = sure.iloc[0]
            percent = min(99, round(100 * float(first["probability"])))  # none is rounded to a certainty
            steps.append(
                f"Check the labels of the most confident mistakes. In {len(sure)} of those listed, the wrong class "
                f"was predicted with a probability of {100 * SURE:.0f} % or more. The first: "
                f"{first['path']}, labelled {first['label']}, predicted {first['predicted']} ({percent} %)."
            )
    return steps


def _collect(classes) -> list[str]:
    numbers = classes[["images", "recall", "recall_high"]].astype(float)
    overall = (numbers["recall"] * numbers["images"]).sum() / numbers["images"].sum()
    weak = classes.loc[numbers["recall"].where(numbers["recall_high"] < overall).dropna().sort_values().index[:2]]
    return [
        f"Add images of {row['class']}: only {100 * float(row['recall']):.0f} % are recognised, against "
        f"{100 * overall:.0f} % overall. It is most often mistaken for {row['taken_for']}."
        for _, row in weak.iterrows()
    ]


def _label(labels: dict) -> list[str]:
    return [labels["headline"]] if labels.get("label_more") == "yes" else []


def _decide(verdict: dict) -> list[str]:
    comparison = verdict.get("comparison") or {}
    # In files of earlier versions, that was also the name of a difference too small to matter.
    if verdict["verdict"] != "no difference shown" or comparison.get("equivalent") or "detectable" not in comparison:
        return []
    return [
        f"For a clearer answer, use more test images or a larger BUDGET: only a difference of "
        f"about {100 * comparison['detectable']:.1f} points or more would likely have been shown."
    ]


def _harden(corruptions) -> list[str]:
    if corruptions is None:
        return []
    table = corruptions.astype({"severity": int, "accuracy": float})
    before = table[table["severity"] == 0].groupby("arm")["accuracy"].first()
    mild = table[table["severity"] == 1]
    mild = mild.assign(lost=mild["arm"].map(before) - mild["accuracy"]).sort_values("lost")
    if mild.empty or mild["lost"].iloc[-1] < LOSS:
        return []
    worst = mild.iloc[-1]
    return [
        f'Even at its lowest severity, the corruption "{worst["corruption"]}" costs the {worst["arm"]} network '
        f"{100 * worst['lost']:.0f} points. If such images occur in real use, add some to the training data."
    ]


def _change_network(verdict: dict, parameters: dict) -> list[str]:
    arms = verdict.get("arms", {})
    best = arms.get(verdict.get("chosen"), {}).get("test_accuracy", 1.0)
    pixels = arms.get("raw pixels", {}).get("test_accuracy", 0.0)
    if best >= GOOD and best > pixels + 0.02:
        return []
    used = parameters.get("backbone", "this network")
    return [
        f"Try another network (BACKBONE=..., another NAME): with {used}, {100 * best:.0f} % of the predictions are "
        f"right."
    ]


def _files(paths) -> str:
    more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
    return ", ".join(paths.iloc[:2]) + more
