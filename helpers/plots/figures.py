"""A figure with a description in words, and what several figures draw alike."""

import warnings

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

matplotlib.rcParams["text.parse_math"] = False  # the "$" in a class's or a file's name begins no formula

STYLES = (
    {"marker": "o", "linestyle": "-", "markerfacecolor": "black"},
    {"marker": "D", "linestyle": "--", "markerfacecolor": "white"},
    {"marker": "s", "linestyle": ":", "markerfacecolor": "0.6"},
    {"marker": "^", "linestyle": "-.", "markerfacecolor": "white"},
)
"""Of curves that are drawn together: told apart without colours."""


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


def new_figure(width: float, height: float) -> DescribedFigure:
    """Returns an empty figure of this size, in inches."""
    return DescribedFigure(figsize=(width, height), dpi=80, layout="constrained")


def new_axes(width: float, height: float) -> tuple[DescribedFigure, Axes]:
    """Returns an empty figure of this size, in inches, and the only axes in it."""
    figure = new_figure(width, height)
    return figure, figure.subplots()


def text_figure(message: str) -> DescribedFigure:
    """Returns a low figure that holds a sentence alone, where there is nothing to draw."""
    figure, axes = new_axes(9, 0.6)
    axes.axis("off")  # without axes, a notebook would print no picture
    figure.text(0.5, 0.5, message, ha="center", va="center")
    figure.description = message
    return figure


def image_grid(rows: int, columns: int, *, width: float, height: float) -> tuple[DescribedFigure, np.ndarray]:
    """Returns a figure of this size, in inches, and its axes for images, (rows, columns), without ticks."""
    figure = new_figure(width, height)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure, grid


def show_image(axes: Axes, image: ArrayLike, title: str = "", *, row: str = "", **style) -> None:
    """Draws an image in a frame, with its title above it, and to the left the name of the row that it begins."""
    axes.imshow(image, interpolation="nearest", **style)
    axes.set_frame_on(True)
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(row, rotation=0, ha="right", va="center")


def shorten(name: str, *, most: int = 20) -> str:
    """Returns the name, without its middle if it is longer than `most` characters."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def draw_intervals(axes: Axes, x: ArrayLike, y: ArrayLike, spans: ArrayLike, **style) -> None:
    """Draws points with vertical intervals, `spans` (points, 2) from low to high; what is NaN is left out."""
    x, y, spans = (np.asarray(values, dtype=float) for values in (x, y, spans))
    reach = np.clip([y - spans[:, 0], spans[:, 1] - y], 0, None)  # rounding may put an end on the wrong side
    axes.errorbar(x, y, yerr=reach, **{"color": "black", "ecolor": "0.4", "elinewidth": 1.5, "capsize": 3} | style)


def label_log_axis(axis: Axis, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """Writes plain numbers at a logarithmic axis, at these multiples of powers of ten."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:g}")  # the usual one writes formulas, which are switched off
    axis.set_minor_formatter(NullFormatter())


def describe_accuracy(arm) -> str:
    """Returns an arm's test accuracy with its 95 % interval, in words."""
    return f"{100 * arm['test_accuracy']:.1f} % ({100 * arm['low']:.1f} to {100 * arm['high']:.1f})"
