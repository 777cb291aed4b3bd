"""Pretraining without labels: the task, and that it stops, goes on and freezes as trainings do here."""

import numpy as np
import pytest
from networks import residual_network

from helpers.backbones import audit_weights, copy_weights, freeze, keras
from helpers.data import Pairs
from helpers.letters import build_letter_backbone, render_letters
from helpers.training import contrastive, pretrain, score_features, set_seed
from helpers.training.contrastive import attach_projector, contrastive_loss, partner_found


@pytest.fixture(scope="module")
def letters() -> tuple[np.ndarray, np.ndarray]:
    return render_letters(800, seed=1)


@pytest.fixture
def parts(letters) -> dict[str, np.ndarray]:
    return {"train": letters[0][:200], "validation": letters[0][200:264]}


def unit_vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 2, width))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype("float32")


def by_definition(projections: np.ndarray, temperature: float) -> np.ndarray:
    """NT-Xent, view by view (equation 1 of the paper), averaged over the two views of each image."""
    losses = np.zeros(projections.shape[:2])
    views = [(image, view) for image in range(len(projections)) for view in (0, 1)]
    for image, view in views:
        likeness = {
            other: np.exp(projections[image, view] @ projections[other] / temperature)
            for other in views
            if other != (image, view)
        }
        losses[image, view] = -np.log(likeness[image, 1 - view] / sum(likeness.values()))
    return losses.mean(axis=1)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_is_the_papers(temperature):
    projections = unit_vectors(5, 7)
    loss = np.array(contrastive_loss(temperature)(np.zeros(5), keras.ops.convert_to_tensor(projections)))
    np.testing.assert_allclose(loss, by_definition(projections, temperature), rtol=1e-5)


def test_partners_that_are_nearest_are_found():
    projections = np.zeros((3, 2, 4), "float32")
    projections[0, :, 0] = projections[1, 0, 1] = projections[1, 1, 0] = 1  # the first pair is alike
    projections[2, 0, 2] = projections[2, 1, 2] = 1
    found = np.array(partner_found(np.zeros(3), keras.ops.convert_to_tensor(projections)))
    assert found[2] == 1.0 and found[1] == 0.0 and found[0] >= 0.5


def test_two_views_differ_and_come_again(parts):
    pairs = Pairs(parts["train"], "crop,rotate,light", seed=3)
    first, second = pairs.at_epoch(0)[:50], pairs.at_epoch(1)[:50]
    assert pairs.shape == (200, 2, 8, 8, 3) and first.shape == (50, 2, 8, 8, 3) and first.dtype == np.uint8
    views = [*first.swapaxes(0, 1), *second.swapaxes(0, 1)]
    for one in range(4):
        for other in range(one):
            alike = (views[one] == views[other]).all(axis=(1, 2, 3))
            assert alike.mean() < 0.2, f"views {one} and {other}"
    np.testing.assert_array_equal(Pairs(parts["train"], "crop,rotate,light", seed=3).at_epoch(1)[:50], second)
    np.testing.assert_array_equal(pairs.at_epoch(1)[np.array([7, 3])], second[[7, 3]])


def test_views_of_one_image_stay_together_in_the_network(parts):
    network = build_letter_backbone("letters")
    model = attach_projector(network, width=16)
    views = Pairs(parts["train"], "crop", seed=0).at_epoch(0)[:6]
    projections = model.predict(views, verbose=0)
    assert projections.shape == (6, 2, 16) and projections.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(projections, axis=-1), 1, rtol=1e-5)
    alone = model.predict(np.stack([views[:, 1], views[:, 0]], axis=1), verbose=0)
    np.testing.assert_allclose(alone[:, ::-1], projections, atol=1e-5)


def test_frozen_means_bit_equal_also_without_labels(parts, tmp_path):
    network = build_letter_backbone("letters")
    freeze(network, unfreeze_from="conv4")
    before = copy_weights(network)
    pretrain(network, parts, folder=tmp_path, epochs=1, batch_size=32)
    audit = audit_weights(network, before)
    assert audit["frozen_changed"].sum() == 0 and audit["trainable_unchanged"].sum() == 0
    assert audit.loc["conv4", "changed"] > 0 and audit.loc[["conv1", "conv2", "conv3"], "changed"].sum() == 0


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epochs: int, batches: int = 0):
        super().__init__()
        self.epochs, self.batches, self.done = epochs, batches, 0

    def on_train_batch_end(self, batch, logs=None):
        if self.done == self.epochs and self.batches and batch + 1 == self.batches:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.done += 1
        if self.done == self.epochs and not self.batches:
            raise KeyboardInterrupt


def begin(seed: int = 0) -> keras.Model:
    set_seed(seed)
    return residual_network(dtype="uint8")


@pytest.mark.parametrize(
    "batches, again", [(0, "new process"), (3, "same network")], ids=["between epochs", "within an epoch"]
)
def test_an_interrupted_pretraining_goes_on_to_the_same_weights(parts, tmp_path, monkeypatch, batches, again):
    options = {"epochs": 3, "batch_size": 32, "seed": 5}
    whole = begin()
    expected = pretrain(whole, parts, folder=tmp_path / "whole", **options)
    network = begin()
    with monkeypatch.context() as patch:
        patch.setattr(contrastive, "show_progress", lambda: StopAfter(1, batches))
        with pytest.raises(KeyboardInterrupt):
            pretrain(network, parts, folder=tmp_path / "stopped", **options)
    assert len(list((tmp_path / "stopped").iterdir())) == 1
    if again == "new process":
        network = begin()
        contrastive._STARTS.clear()
    monkeypatch.setattr(contrastive, "show_progress", lambda: StopAfter(3))  # two epochs are left
    history = pretrain(network, parts, folder=tmp_path / "stopped", **options)
    for one, other in zip(whole.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert history.index.tolist() == [1, 2, 3]
    np.testing.assert_allclose(history, expected, rtol=1e-6)
    assert not any((tmp_path / "stopped").iterdir())


def test_another_start_does_not_take_up_what_was_stopped(parts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(contrastive, "show_progress", lambda: StopAfter(1))
        with pytest.raises(KeyboardInterrupt):
            pretrain(begin(), parts, folder=tmp_path, epochs=2, batch_size=32)
    for network, images, options in (
        (begin(seed=1), parts, {}),
        (begin(), parts | {"train": parts["train"][:150]}, {}),
        (begin(), parts, {"temperature": 0.2}),
    ):
        monkeypatch.setattr(contrastive, "show_progress", lambda: StopAfter(2))
        with pytest.raises(KeyboardInterrupt):  # it ran both epochs
            pretrain(network, images, folder=tmp_path, epochs=2, batch_size=32, **options)


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_features_become_better_than_random_ones(letters, tmp_path, batch_norm):
    """Also where batch normalization stays as it is, as in a network from ImageNet."""
    images, labels = letters
    set_seed(0)
    network = build_letter_backbone("letters")
    freeze(network, unfreeze_from="conv1", batch_norm=batch_norm)
    few = labels < 20
    before = score_features(network.predict(images[few], verbose=0), labels[few], labelled=60, test=60, draws=5)
    history = pretrain(
        network, {"train": images, "validation": images[:128]}, folder=tmp_path, epochs=6, batch_size=64
    )
    after = score_features(network.predict(images[few], verbose=0), labels[few], labelled=60, test=60, draws=5)
    assert history["val_partner_found"].iloc[-1] > 0.5
    assert (after - before).mean() > 0.05


def test_maps_are_pooled_for_the_projector():
    maps = residual_network(dtype="uint8")
    assert len(maps.output.shape) == 4
    assert attach_projector(maps, width=8)(np.zeros((3, 2, 8, 8, 3), "uint8")).shape == (3, 2, 8)


def test_what_cannot_be_learned_from_is_refused(parts, tmp_path):
    network = build_letter_backbone("letters")
    with pytest.raises(ValueError, match=r"at least 2 images in validation.*Received 1"):
        pretrain(network, parts | {"validation": parts["train"][:1]}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"images of \(8, 8, 3\) for letters.*\(9, 8, 3\) in train"):
        pretrain(network, parts | {"train": np.zeros((4, 9, 8, 3), "uint8")}, folder=tmp_path)
    with pytest.raises(ValueError, match="`augmentation`.*'crop,blur'"):
        pretrain(network, parts, folder=tmp_path, augmentation="crop,blur")
    for name in ("epochs", "batch_size", "learning_rate", "temperature"):
        with pytest.raises(ValueError, match=f"`{name}` above 0. Received 0"):
            pretrain(network, parts, folder=tmp_path, **{name: 0})
    with pytest.raises(ValueError, match="`learning_rate` 1e.30 is too high"):
        pretrain(network, parts, folder=tmp_path, epochs=2, batch_size=32, learning_rate=1e30)
    freeze(network)
    with pytest.raises(ValueError, match="All of letters is frozen"):
        pretrain(network, parts, folder=tmp_path)
    assert not any(tmp_path.iterdir())
