"""The diagram of a network's stages says the same in pictures and in words."""

import pytest

from helpers.plots import plot_stages


@pytest.fixture(scope="module")
def network():
    from helpers.appendices.letters import build_letter_backbone

    return build_letter_backbone("letters")


@pytest.mark.parametrize(
    ("options", "states", "note"),
    [
        ({}, "frozen frozen frozen frozen", "128 features"),
        ({"cut": "conv4"}, "frozen frozen frozen left out", "64 features; cut before conv4"),
        ({"learns_from": "conv3"}, "frozen frozen learns learns", "8x8x32, 8.2 kB"),
        ({"cut": "conv4", "learns_from": "conv1"}, "learns learns learns left out", "cut before conv4"),
    ],
)
def test_stages_are_drawn_as_wide_as_they_cost_and_as_they_are_used(network, options, states, note):
    figure = plot_stages(network, **options)
    (axes,) = figure.axes
    *stages, head = axes.patches
    assert [round(bar.get_width(), 3) for bar in stages] == [0.007, 0.288, 0.256, 0.449]
    said = figure.description.removeprefix("The network's stages: ").partition("; head learns. ")
    assert " ".join(part.split(" ", 1)[1] for part in said[0].split("; ")) == states
    assert note in said[2]
    learning = [bar for bar, part in zip(stages, said[0].split("; "), strict=True) if part.endswith("learns")]
    assert {bar.get_facecolor() for bar in [*learning, head]} == {head.get_facecolor()}
