"""Pretraining without labels: the task, and that it stops, goes on and freezes as trainings do here."""

import json

import numpy as np
import pytest
from networks import Interrupt, stage_network

from helpers.appendices import Pairs, contrastive, pretrain, score_features
from helpers.appendices.contrastive import attach_projector, contrastive_loss, partner_found
from helpers.appendices.letters import build_letter_backbone, render_letters
from helpers.backbones import audit_weights, copy_weights, freeze, keras
from helpers.training import set_seed
from helpers.training.fine_tuning import digest_images


@pytest.fixture(scope="module")
def letters() -> tuple[np.ndarray, np.ndarray]:
    return render_letters(800, seed=1)


@pytest.fixture(scope="module")
def parts(letters) -> dict[str, np.ndarray]:
    return {"train": letters[0][:200], "validation": letters[0][200:264]}


def by_definition(projections: np.ndarray, temperature: float) -> np.ndarray:
    """NT-Xent, view by view (equation 1 of the paper), averaged over the two views of each image."""
    losses = np.zeros(projections.shape[:2])
    for view in np.ndindex(losses.shape):
        others = [other for other in np.ndindex(losses.shape) if other != view]
        likeness = {other: np.exp(projections[view] @ projections[other] / temperature) for other in others}
        losses[view] = -np.log(likeness[view[0], 1 - view[1]] / sum(likeness.values()))
    return losses.mean(axis=1)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_is_the_papers(temperature):
    vectors = np.random.default_rng(0).normal(size=(5, 2, 7))
    projections = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype("float32")
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


def test_frozen_means_bit_equal_also_without_labels(parts):
    network = build_letter_backbone("letters")
    freeze(network, unfreeze_from="conv4")
    before = copy_weights(network)
    pretrain(network, parts, epochs=1, batch_size=32)
    audit = audit_weights(network, before)
    assert audit["frozen_changed"].sum() == 0 and audit["trainable_unchanged"].sum() == 0
    assert audit.loc["conv4", "changed"] > 0 and audit.loc[["conv1", "conv2", "conv3"], "changed"].sum() == 0


OPTIONS = {"epochs": 3, "batch_size": 32, "seed": 5}


@pytest.fixture(scope="module")
def whole(parts):
    network = stage_network(dropout=0.3)
    return pretrain(network, parts, **OPTIONS), network.get_weights()


@pytest.mark.parametrize(
    ("epochs", "batches", "again"), [(0, 3, "same network"), (1, 2, "same network"), (1, 2, "new process")]
)
def test_an_interrupted_pretraining_resumes(parts, tmp_path, monkeypatch, whole, epochs, batches, again):
    expected, weights = whole
    options = OPTIONS | {"file": tmp_path / "training.npz"}
    network = stage_network(dropout=0.3)
    with monkeypatch.context() as patch:
        patch.setattr(contrastive, "show_progress", lambda: Interrupt(epochs, batch=batches))
        with pytest.raises(KeyboardInterrupt, match=rf"Interrupted in epoch {epochs + 1}\b.*resumes"):
            pretrain(network, parts, **options)
    network = stage_network(dropout=0.3) if again == "new process" else network
    keep = pretrain(network, parts, **options)
    for one, other in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert keep.history == expected.history and len(keep.history["val_partner_found"]) == 3
    keep.delete()
    assert not any(tmp_path.iterdir())


def test_what_a_pretraining_depends_on_is_in_its_settings(parts, whole):
    """With other ones, `Checkpoint` resumes nothing."""
    settings = json.loads(whole[0].settings)[0]
    assert settings.items() >= (OPTIONS | {"temperature": 0.1, "augmentation": "crop,rotate,light"}).items()
    labels = {part: np.zeros(len(images), int) for part, images in parts.items()}
    others = parts | {"train": parts["train"][::-1]}
    assert settings["images"] == digest_images(parts, labels) != digest_images(others, labels)


def test_the_best_epoch_is_kept_and_a_diverged_training_leaves_the_start(parts):
    network = stage_network()
    start = copy_weights(network)
    keep = pretrain(network, parts, epochs=2, batch_size=32, learning_rate=1e30)
    assert keep.outcome.startswith("diverged") and keep.best_epoch == 0
    assert all(np.array_equal(start[path], value) for path, value in copy_weights(network).items())
    network = build_letter_backbone("letters")
    freeze(network, unfreeze_from="conv3", batch_norm="frozen")
    keep = pretrain(network, parts, epochs=3, batch_size=16)
    losses = [keep.start["log_loss"], *keep.history["val_log_loss"]]
    assert keep.best_epoch == int(np.argmin(losses)) > 0 and keep.outcome == "all 3 epochs"


def test_only_whole_batches_are_held_out(parts, monkeypatch):
    """In a smaller batch, a partner is found more easily."""
    batches = []

    class Watch(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            batches.append(batch)

    monkeypatch.setattr(contrastive, "show_progress", Watch)
    pretrain(stage_network(), parts, epochs=1, batch_size=30)  # 64 are held out
    assert batches == [0, 1]


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_features_become_better_than_random_ones(letters, batch_norm):
    """Also where batch normalization stays as it is, as in a network from ImageNet."""
    images, labels = letters
    set_seed(0)
    network = build_letter_backbone("letters")
    freeze(network, unfreeze_from="conv1", batch_norm=batch_norm)
    few = labels < 20
    before = score_features(network.predict(images[few], verbose=0), labels[few], labelled=60, test=60, draws=5)
    keep = pretrain(network, {"train": images, "validation": images[:128]}, epochs=6, batch_size=64)
    after = score_features(network.predict(images[few], verbose=0), labels[few], labelled=60, test=60, draws=5)
    assert keep.history["val_partner_found"][-1] > 0.5
    assert (after - before).mean() > 0.05


def test_what_cannot_be_learned_from_is_refused(parts):
    network = build_letter_backbone("letters")
    with pytest.raises(ValueError, match=r"at least 2 images in validation.*Received 1"):
        pretrain(network, parts | {"validation": parts["train"][:1]})
    with pytest.raises(ValueError, match="`augmentation`.*'crop,blur'"):
        pretrain(network, parts, augmentation="crop,blur")
    for name in ("epochs", "batch_size", "learning_rate", "temperature"):
        with pytest.raises(ValueError, match=f"`{name}` above 0. Received 0"):
            pretrain(network, parts, **{name: 0})
    freeze(network)
    with pytest.raises(ValueError, match="All of letters is frozen"):
        pretrain(network, parts)
