"""The network as a row of stages: what is taken, what is frozen, what learns."""

from matplotlib.patches import Patch

from helpers.plots.figures import DescribedFigure, new_figure

_LOOKS = {
    "frozen": {"facecolor": "#a6cee3", "edgecolor": "black"},
    "learns": {"facecolor": "#d95f02", "edgecolor": "black"},
    "left out": {"facecolor": "white", "edgecolor": "0.5", "hatch": "////"},
}
"""Of a stage: light, dark and hatched, so that they differ without colours, too."""

_HEAD = 0.06
"""Width of the head, whose own cost would not be seen, as a share of the network."""


def plot_stages(network, *, cut: str = "head", learns_from: str = "head") -> DescribedFigure:
    """Returns a diagram of a network's stages, each as wide as its share of the forward cost.

    Args:
        network: a Keras model, a backbone or a classifier.
        cut: the first stage that is left out; "head" where all are taken.
        learns_from: the first stage that learns; "head" where only the head does.
    """
    from helpers.backbones import describe_stages  # here: other figures need no TensorFlow

    stages = describe_stages(network)
    inner = stages.drop(index=[name for name in ("input", "head") if name in stages.index])
    taken = list(inner.index[: inner.index.get_loc(cut)] if cut in inner.index else inner.index)
    frozen = taken[: taken.index(learns_from)] if learns_from in taken else taken
    states = {name: "frozen" if name in frozen else "learns" if name in taken else "left out" for name in inner.index}
    figure = new_figure(9, 2.2)
    axes = figure.subplots()
    crowded, left, ends = len(inner) > 9, 0.0, {}
    for name, end in inner["cost"].items():
        axes.bar(left, 1, width=end - left, align="edge", linewidth=0.8, **_LOOKS[states[name]])
        axes.text((left + end) / 2, -0.08, name, rotation=90 * crowded, ha="center", va="top", fontsize=8)
        left = ends[name] = end
    end = ends[taken[-1]] if taken else 0.0
    axes.bar(1.02, 1, width=_HEAD, align="edge", linewidth=0.8, **_LOOKS["learns"])
    axes.text(1.02 + _HEAD / 2, -0.08, "head", rotation=90 * crowded, ha="center", va="top", fontsize=8)
    notes = []
    if frozen:  # what the frozen stages hand on is the same in each epoch, and kept
        last = inner.loc[frozen[-1]]
        kept = f"computed once for each image, and kept: {last['output']}, {last['kilobytes']:g} kB"
        if len(frozen) == len(taken):
            kept = f"computed once for each image, and kept: {last['output'].split('x')[-1]} features"
        axes.annotate(kept, (ends[frozen[-1]], 1), (ends[frozen[-1]], 1.3), **_arrow(ends[frozen[-1]]))
        notes.append(kept)
    if len(taken) < len(inner):
        axes.plot([end, end], [-0.02, 1.2], color="black", linewidth=2.5)
        notes.append(f"cut before {cut}")
    axes.set(xlim=(-0.01, 1.03 + _HEAD), ylim=(-0.9 if crowded else -0.3, 1.65), yticks=[])
    axes.set_xticks([])
    axes.set_frame_on(False)
    shown = [state for state in _LOOKS if state == "learns" or state in states.values()]
    handles = [Patch(label=state, **_LOOKS[state]) for state in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle("Stages, each as wide as it costs", fontsize=11)
    told = "; ".join(f"{name} {state}" for name, state in states.items())
    figure.description = f"The network's stages: {told}; head learns. {'; '.join(notes)}."
    return figure


def _arrow(place: float) -> dict:
    """Returns how a note points to a place, 0..1, and on which side of it it is written."""
    side = "right" if place > 0.5 else "left"
    arrow = {"arrowstyle": "->", "relpos": (float(place > 0.5), 0)}  # from the note's lower end
    return {"ha": side, "va": "bottom", "fontsize": 9, "arrowprops": arrow}
