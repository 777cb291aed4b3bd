"""Letters are repeatable, look like the digits in what can be counted, and are no digits."""

import doctest

import numpy as np
import pytest
from sklearn.datasets import load_digits

from helpers.appendices import letters
from helpers.appendices.letters import LETTERS, build_letter_network, counts_to_images, render_letters, render_steps
from helpers.backbones import describe_stages


@pytest.fixture(scope="module")
def rendered():
    return render_letters(1500, seed=0)


def test_doctests():
    assert doctest.testmod(letters).failed == 0 < doctest.testmod(letters).attempted


def test_no_digit_and_no_look_alike_is_a_class():
    characters = "".join(LETTERS)
    assert not any(character.isdigit() for character in characters)
    assert not set("OoQDIilJjZzSsGbTBgqЗЧЭΘ") & set(characters)
    assert len(characters) == len(set(characters)), "a character has one class"


def test_same_seed_same_letters_on_any_number_of_threads(rendered):
    images, labels = rendered
    assert images.shape == (1500, 8, 8, 3) and images.dtype == np.uint8
    again, again_labels = render_letters(1500, seed=0, threads=1)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, again_labels)
    other, _ = render_letters(1500, seed=1)
    assert (other != images).any(axis=(1, 2, 3)).mean() > 0.99


def test_letters_have_the_digits_ink(rendered):
    images, labels = rendered
    assert set(labels) == set(range(len(LETTERS)))
    assert set(np.unique(images)) <= set(np.unique(counts_to_images(np.arange(17)[None, :, None])))
    ours, theirs = images[..., 0] / 255 * 16, load_digits().images
    assert ours.sum(axis=(1, 2)).mean() == pytest.approx(theirs.sum(axis=(1, 2)).mean(), rel=0.05)
    assert (ours == 0).mean() == pytest.approx((theirs == 0).mean(), abs=0.05)
    np.testing.assert_allclose(ours.mean(axis=(0, 1)), theirs.mean(axis=(0, 1)), atol=2.5)  # over the columns


def test_steps_end_in_counts():
    steps = render_steps("R", seed=0)
    assert list(steps) == ["printed", "drawn", "stretched", "even ink", "upright", "counted"]
    np.testing.assert_array_equal(steps["counted"], steps["upright"].reshape(8, 4, 8, 4).sum(axis=(1, 3)))


def test_network_has_stages_and_takes_raw_images(rendered):
    network = build_letter_network(7)
    assert list(describe_stages(network).index) == ["input", "conv1", "conv2", "conv3", "conv4", "predictions"]
    assert network.inputs[0].dtype == "uint8" and network.count_params() < 500_000
    np.testing.assert_allclose(network.predict(rendered[0][:4], verbose=0).sum(axis=1), 1, rtol=1e-5)
