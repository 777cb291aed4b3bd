"""A figure with a description in words, and what several figures draw alike."""

import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D, Bbox
from numpy.typing import ArrayLike

matplotlib.rcParams["text.parse_math"] = False  # the "$" in a class's or a file's name begins no formula

_SIDES = [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
"""Where a name may stand: right (1) or left (-1) of its point, above (1) or below (-1) it; the first is the best."""

_GAPS = (5, 14, 26, 40, 58)
"""How far from its point a name may stand, in typographic points."""


class DescribedFigure(Figure):
    """A figure that a notebook shows with a description, as alternative text and as plain text."""

    description = ""

    def _repr_mimebundle_(self, include=None, exclude=None):
        from IPython.core.pylabtools import print_figure

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # an emoji in a name is drawn as a box
            png = print_figure(self, fmt="png", base64=True)
        bundle = {"image/png": png, "text/plain": f"[figure] {self.description}"}
        return bundle, {"image/png": {"alt": self.description}}


def say(message: str) -> DescribedFigure:
    """Returns a low figure that holds a sentence alone, where there is nothing to draw."""
    figure = new_figure(9, 0.6)
    figure.subplots().axis("off")  # without axes, a notebook would print no picture
    figure.text(0.5, 0.5, message, ha="center", va="center")
    figure.description = message
    return figure


def new_figure(width: float, height: float) -> DescribedFigure:
    """Returns an empty figure of this size, in inches."""
    return DescribedFigure(figsize=(width, height), dpi=80, layout="constrained")


def shorten(name: str, *, most: int = 20) -> str:
    """Returns the name, without its middle if it is longer than `most` characters."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def draw_intervals(axes: Axes, x: ArrayLike, y: ArrayLike, spans: ArrayLike, **style) -> None:
    """Draws points with vertical intervals, `spans` (points, 2) from low to high; what is NaN is left out."""
    x, y, spans = (np.asarray(values, dtype=float) for values in (x, y, spans))
    reach = np.clip([y - spans[:, 0], spans[:, 1] - y], 0, None)  # rounding may put an end on the wrong side
    axes.errorbar(x, y, yerr=reach, **{"color": "black", "ecolor": "0.4", "elinewidth": 1.5, "capsize": 3} | style)


def label_points(axes: Axes, names: Sequence[str], x: ArrayLike, y: ArrayLike, spans: ArrayLike) -> None:
    """Writes each name near its point, where it covers least of names, points and spans; with a line to it if far.

    Call it last: the axes' limits have to be known, and the lines that are drawn already are not to cross a name.

    Args:
        axes: of the points.
        names: of the points, one line each.
        x: of the points.
        y: of the points.
        spans: lowest and highest y that is drawn at each x, (points, 2).
    """
    figure = axes.figure
    figure.draw_without_rendering()  # lays the figure out: only now it is known what is where
    pixels = figure.dpi / 72  # per typographic point
    places = axes.transData.transform(np.column_stack([x, y]).astype(float)) / pixels
    ends = [axes.transData.transform(np.column_stack([x, end]).astype(float)) / pixels for end in np.asarray(spans).T]
    points = [Bbox.from_extents(*(place - 12), *(place + 12)) for place in places]  # whose name it is stays clear
    taken = [Bbox.from_extents(*(low - 3), *(high + 3)) for low, high in zip(*ends, strict=True) if low[1] <= high[1]]
    frame = axes.bbox.transformed(Affine2D().scale(1 / pixels))
    drawn = [line for line in axes.lines if line.get_linestyle() != "None"]
    lines = [line.get_transform().transform_path(line.get_path()) for line in drawn]
    lines = [line.transformed(Affine2D().scale(1 / pixels)) for line in lines]
    for number, (name, place) in enumerate(zip(names, places, strict=True)):
        text = axes.text(0, 0, name, fontsize=9)
        size = text.get_window_extent().size / pixels
        text.remove()

        def box_at(side: tuple[int, int], gap: float, place=place, size=size) -> Bbox:
            return Bbox.from_bounds(*(place + np.array(side) * (gap + size / 2) - size / 2), *size)

        def badness(box: Bbox, others=points[:number] + points[number + 1 :], size=size) -> float:
            crossed = sum(line.intersects_bbox(box.padded(2), filled=False) for line in lines) * size.prod()
            hidden = sum(_area(box, other) for other in taken + others)
            return crossed + hidden + 9 * (size.prod() - _area(box, frame))

        places_near = [(box_at(side, gap), gap) for gap in _GAPS for side in _SIDES]
        box, gap = min(places_near, key=lambda candidate: round(badness(candidate[0])))
        taken.append(box.padded(2))
        axes.annotate(
            name,
            (np.asarray(x)[number], np.asarray(y)[number]),
            xytext=(box.min + box.max) / 2 - place,
            textcoords="offset points",
            fontsize=9,
            ha="center",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": "0.5", "shrinkB": 5} if gap > _GAPS[0] else None,
        )


def _area(box: Bbox, other: Bbox) -> float:
    """Returns the area that two boxes share."""
    shared = Bbox.intersection(box, other)
    return shared.width * shared.height if shared else 0.0
