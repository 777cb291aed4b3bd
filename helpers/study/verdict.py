"""Freeze or fine-tune: what follows from the paired difference, and how it is said."""


def decide(comparison: dict) -> str:
    """Returns the verdict on `compare_pairs(frozen, fine_tuned)`.

    "freeze" and "fine-tune" say that this is better; "too small to matter", that the difference is within the margin;
    "no difference shown", none of these.
    """
    if comparison["shown"] == "first":
        return "freeze"
    if comparison["equivalent"]:
        return "too small to matter"
    return "fine-tune" if comparison["shown"] == "second" else "no difference shown"


def choose_arm(comparison: dict) -> str:
    """Returns which network to hand over, "frozen" or "fine-tuned": the one that the verdict names.

    Where it names none (or nothing was compared), it is the frozen one, which is cheaper, unless fine-tuning did
    better by more than the margin: then that is the better guess.
    """
    if not comparison:
        return "frozen"
    likely = not comparison["shown"] and comparison["difference"] > comparison["margin"]
    return "fine-tuned" if likely or decide(comparison) == "fine-tune" else "frozen"


def describe_verdict(answer: dict) -> dict[str, str]:
    """Returns headline, a recommendation in a sentence, and explanation, a paragraph, of what verdict.json holds."""
    stopped = f" The study is not complete: {answer['stopped']}." if answer["stopped"] else ""
    if not answer["comparison"]:
        headline = "No verdict: fewer than two splits have results of both arms."
        return {"headline": headline, "explanation": stopped.strip() or "Run the notebook again to complete it."}
    points = {name: 100 * answer["comparison"][name] for name in ("difference", "low", "high", "detectable")}
    return {"headline": _headline(answer, points), "explanation": _explanation(answer, points) + stopped}


def _headline(answer: dict, points: dict[str, float]) -> str:
    frozen, tuned = answer["arms"]["frozen"], answer["arms"]["fine-tuned"]
    times = tuned["seconds"] / max(frozen["seconds"], 1e-9)
    longer = f", and takes {times:.0f} times as long" if times >= 1.5 else ""
    if answer["verdict"] == "fine-tune":
        return (
            f"Fine-tune {_describe_arm(tuned)}: {points['difference']:.1f} points more accurate than frozen (95 % "
            f"interval {points['low']:.1f} to {points['high']:.1f})."
        )
    if answer["verdict"] == "freeze":
        return (
            f"Freeze: fine-tuning is {-points['difference']:.1f} points less accurate (95 % interval "
            f"{-points['high']:.1f} to {-points['low']:.1f}){longer}."
        )
    if answer["chosen"] == "fine-tuned":
        return (
            f"Not decided, but fine-tuning is the better guess: it looks {points['difference']:.1f} points more "
            f"accurate, which may be chance ({_interval(points)}){longer}."
        )
    if answer["verdict"] == "too small to matter":
        return f"Freeze: fine-tuning makes a difference too small to matter ({_interval(points)}){longer}."
    return f"Freeze: fine-tuning is not shown to be better here ({_interval(points)}){longer}."


def _explanation(answer: dict, points: dict[str, float]) -> str:
    comparison = answer["comparison"]
    frozen, tuned = answer["arms"]["frozen"], answer["arms"]["fine-tuned"]
    detectable = ""
    if answer["verdict"] == "no difference shown":
        detectable = (
            f" Only a difference of about {points['detectable']:.1f} points or more would likely have been shown."
        )
    costs = [
        f"{arm['seconds']:.1f} s with {arm['trainable_weights']:,.0f} trainable weights ({name})"
        for name, arm in (("frozen", frozen), ("fine-tuned", tuned))
    ]
    chosen = f"fine-tuned {_describe_arm(tuned)}" if answer["chosen"] == "fine-tuned" else "frozen"
    return (
        f"On {comparison['images']:,} held-out test images (not used to train or to choose the arms), the frozen "
        f"network ({_describe_cut(frozen)}) reaches an accuracy of {100 * frozen['test_accuracy']:.1f} %, the "
        f"fine-tuned one ({_describe_cut(tuned)}, unfrozen from {tuned['stage']}) "
        f"{100 * tuned['test_accuracy']:.1f} %: {points['difference']:+z.1f} points on average over "
        f"{comparison['pairs']} splits and seeds "
        f"({_interval(points)}). The probability that fine-tuning is better is "
        f"{_percent(comparison['better'])}.{detectable} Training takes {' and '.join(costs)}. "
        f"The classifier that is handed over is {chosen}."
    )


def _interval(points: dict[str, float]) -> str:
    return f"95 % interval {points['low']:+z.1f} to {points['high']:+z.1f} points"


def _describe_arm(arm: dict) -> str:
    return f"from {arm['stage']} on ({_describe_cut(arm)}, learning rate {arm['learning_rate']:g})"


def _describe_cut(arm: dict) -> str:
    return "all layers taken" if arm.get("all_layers", True) else f"cut before {arm['cut']}"


def _percent(probability: float) -> str:
    if probability > 0.999:
        return "over 99.9 %"
    return "under 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"
