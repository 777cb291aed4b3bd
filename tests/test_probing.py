"""What each depth knows: a head on each truncated network; an earlier cut has to be clearly better."""

import numpy as np
import pandas as pd
import pytest
from networks import coloured_images, stage_network

from helpers.backbones import truncate
from helpers.backbones.stages import cut_points
from helpers.training import choose_cut, compute_activations, fit_head, probe_depth, probing
from helpers.training.probing import load_features


@pytest.fixture
def data():
    images, labels = coloured_images(90)
    return {"train": images[:60], "validation": images[60:]}, {"train": labels[:60], "validation": labels[60:]}


def test_the_probe_is_a_head_on_each_truncated_network(root, data):
    network, (pixels, labels) = stage_network(), data
    probe = probe_depth(network, pixels, labels).set_index("cut")
    assert list(probe.index) == list(cut_points(network)) == ["conv2", "conv3", "head"]
    loaded, seconds = load_features(network, pixels)
    for cut, row in probe.iterrows():
        features = compute_activations(truncate(network, cut), pixels["train"])
        np.testing.assert_allclose(loaded[cut]["train"], features, rtol=1e-4, atol=1e-5)
        head = fit_head(features, labels["train"])
        assert row["log_loss"] == pytest.approx(head.losses_[head.C_], rel=1e-3)
        assert row["features"] == features.shape[1]
    best = probe["log_loss"].idxmin()
    assert probe.loc[best, "behind"] == probe.loc[best, "error"] == 0
    assert probe["behind"].to_numpy() == pytest.approx((probe["log_loss"] - probe["log_loss"].min()).to_numpy())


def test_a_truncated_network_is_a_prefix_with_the_mean_over_positions():
    network = stage_network()
    assert truncate(network, "head") is network
    short = truncate(network, "conv3")
    assert "conv3_conv" not in [layer.name for layer in short.layers] and len(short.output_shape) == 2
    assert short.get_layer("conv2_conv") is network.get_layer("conv2_conv"), "layers are shared"
    with pytest.raises(ValueError, match="a cut point of this network. Received 'conv33'. Did you mean 'conv3'"):
        truncate(network, "conv33")


@pytest.mark.parametrize(("behind", "error", "taken"), [(0.1, 0.05, "b"), (0.1, 0.15, "head"), (0.0, 0.0, "head")])
def test_the_end_is_taken_unless_an_earlier_cut_is_clearly_better(behind, error, taken):
    probe = pd.DataFrame({"cut": ["a", "b", "head"], "log_loss": [0.5, 0.3, 0.3 + behind]})
    assert choose_cut(probe.assign(behind=[0.2, 0.0, behind], error=[0.1, 0.0, error])) == taken


def test_with_one_image_of_a_class_all_layers_are_taken(root):
    images, labels = coloured_images(30)
    first = np.unique(labels, return_index=True)[1]
    pixels, labels = {"train": images[first], "validation": images}, {"train": labels[first], "validation": labels}
    assert choose_cut(probe_depth(stage_network(), pixels, labels)) == "head"


def test_held_out_losses_are_of_each_image():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 5)) + labels[:, None]
    head = fit_head(features, labels)
    assert head.held_out_losses_.shape == (60,) and (head.held_out_losses_ > 0).all()
    assert head.held_out_losses_.mean() == pytest.approx(head.losses_[head.C_])
    odd = features.copy()
    odd[7] = features[labels == (labels[7] + 1) % 3].mean(axis=0)  # an image that looks like another class
    assert fit_head(odd, labels).held_out_losses_[7] > np.median(head.held_out_losses_) + 0.5


@pytest.mark.parametrize("best", [6, 3])
def test_to_compare_networks_the_cut_is_that_of_all_heads_and_hopeless_ones_are_not_fitted(monkeypatch, best):
    """Eight cuts, whose features tell more and more up to the best one, and less behind it."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1, 2], 40)
    noise = [0.8 + 0.8 * abs(number - best) for number in range(8)]
    features = {
        f"cut{number}": {"train": np.eye(3)[labels] + spread * rng.normal(size=(120, 3))}
        for number, spread in enumerate(noise)
    }
    costs, fitted = {cut: number / 7 for number, cut in enumerate(features)}, []
    monkeypatch.setattr(probing, "load_features", lambda network, pixels: (features, 1.5))
    monkeypatch.setattr(probing, "cut_points", lambda network: costs)

    def fit(joined, labels, *, cs, **options):
        fitted.append((joined.tobytes(), len(cs)))
        return fit_head(joined, labels, cs=cs, **options)

    monkeypatch.setattr(probing, "fit_head", fit)
    heads = {cut: fit_head(x["train"], labels) for cut, x in features.items()}
    expected = choose_cut(probing._describe(None, heads))
    head, cut, seconds = probing.probe_all(None, {}, {"train": labels})
    assert cut == expected == f"cut{best}" and seconds == 1.5
    assert head.losses_[head.C_] == pytest.approx(heads[cut].losses_[heads[cut].C_], abs=2e-3)
    assert len({joined for joined, _ in fitted}) == 8 - best + probing._WORSE
    assert [count for _, count in fitted[-probing._WORSE :]] == [1] * probing._WORSE, "their own C would not help"
