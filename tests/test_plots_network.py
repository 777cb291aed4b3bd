"""The diagram of a network's stages says the same in pictures and in words."""

import pandas as pd
import pytest

from helpers.plots import plot_stages

STAGES = pd.DataFrame(
    {
        "cost": [0, 0.1, 0.4, 1.0],
        "output": ["8x8x3", "8x8x32", "4x4x64", "128"],
        "kilobytes": [0.8, 8.2, 4.1, 0.5],
    },
    index=["input", "conv1", "conv2", "conv3"],
)


@pytest.mark.parametrize(
    ("options", "states", "note"),
    [
        ({}, "frozen frozen frozen", "128 features"),
        ({"cut": "conv3"}, "frozen frozen left out", "64 features; cut before conv3"),
        ({"learns_from": "conv2"}, "frozen learns learns", "8x8x32, 8.2 kB"),
        ({"cut": "conv3", "learns_from": "conv1"}, "learns learns left out", "cut before conv3"),
    ],
)
def test_stages_are_drawn_as_wide_as_they_cost_and_as_they_are_used(options, states, note):
    figure = plot_stages(STAGES, **options)
    (axes,) = figure.axes
    *stages, head = axes.patches
    assert [round(bar.get_width(), 3) for bar in stages] == [0.1, 0.3, 0.6]
    said = figure.description.removeprefix("The network's stages: ").partition("; head learns. ")
    assert " ".join(part.split(" ", 1)[1] for part in said[0].split("; ")) == states
    assert note in said[2]
    learning = [bar for bar, part in zip(stages, said[0].split("; "), strict=True) if part.endswith("learns")]
    assert {bar.get_facecolor() for bar in [*learning, head]} == {head.get_facecolor()}
