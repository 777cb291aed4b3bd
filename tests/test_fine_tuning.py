"""Frozen up to a stage and fine-tuned above it, with each field of the recipe doing what it says."""

import os
import subprocess
import sys
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
from networks import call, coloured_images, random_images, stage_network
from sklearn.utils.class_weight import compute_class_weight

from helpers.backbones import audit_weights, copy_weights, freeze, keras, load_model
from helpers.backbones.stages import find_stages
from helpers.data.augmentation import Augmented
from helpers.training import (
    Recipe,
    attach_head,
    compute_activations,
    fine_tune,
    fit_head,
    log_loss,
    make_optimizer,
    prepare_training,
    training_datasets,
    warmup_cosine,
    weigh_classes,
)
from helpers.training.calibration import apply_temperature, calibrated_scores
from helpers.training.checkpoint import Checkpoint
from helpers.training.fine_tuning import count_epochs, layerwise_factors, seed_training, steps_at_once

PIXELS, LABELS = {}, {}
PIXELS["train"], LABELS["train"] = coloured_images(40)
PIXELS["validation"], LABELS["validation"] = coloured_images(30, seed=1)
USUAL = {"unfreeze_from": "conv3", "learning_rate": 0.003, "epochs": 3, "batch_size": 8, "min_lr_factor": 1.0}


def classifier(network=None):
    network = network or stage_network()
    head = fit_head(compute_activations(network, PIXELS["train"]), LABELS["train"], cs=(1e-4,))
    return attach_head(network, head, class_names=list("abc"))


@lru_cache
def shared() -> tuple[keras.Model, list]:
    """Returns a classifier that tests share, so that it is compiled less often, and its weights."""
    model = classifier()
    return model, model.get_weights()


def tune(model=None, *, file=None, show=True, labels=LABELS, **changes) -> SimpleNamespace:
    """Returns how a training went by a recipe that changes weights for certain: weights before and after, audit."""
    if model is None:
        model, start = shared()
        model.set_weights(start)
    before = copy_weights(model)
    keep = fine_tune(model, PIXELS, labels, recipe=Recipe(**USUAL | changes), file=file, show=show)
    after, audit = copy_weights(model), audit_weights(model, before)
    return SimpleNamespace(model=model, before=before, after=after, keep=keep, audit=audit)


def distance(model, before, stage: str) -> float:
    """Returns how far the weights of a stage have moved."""
    paths = [weight.path for layer in find_stages(model)[stage].layers for weight in layer.weights]
    now = copy_weights(model)
    return float(np.sqrt(sum(((now[path] - before[path]) ** 2).sum() for path in paths)))


def same_bits(one: dict, other: dict) -> bool:
    return all(np.array_equal(value, other[path]) for path, value in one.items())


def assert_close(one: dict, other: dict, **tolerance):
    for path, value in one.items():
        np.testing.assert_allclose(value, other[path], **tolerance)


# ---- one way to train


def test_what_03_shows_step_by_step_is_what_fine_tune_does(root):
    whole = tune(seed=3, min_lr_factor=0.1)
    model = classifier()
    start = calibrated_scores(compute_activations(model, PIXELS["validation"]), LABELS["validation"])
    seed_training(model, 3)
    freeze(model, unfreeze_from="conv3")
    suffix, inputs = prepare_training(model, PIXELS, stage="conv3")
    assert suffix is not model and inputs["train"].shape == (40, 8, 8, 6)
    assert prepare_training(model, PIXELS, stage="conv1")[0] is model, "nothing with weights lies before it"
    rate = warmup_cosine(0.003, images=40, batch_size=8, epochs=3)
    optimizer = make_optimizer(model, rate, rates=0.1)
    suffix.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy", log_loss()])
    keep = Checkpoint(None, start=start)
    batches, validation = training_datasets(inputs, LABELS, keep=keep, batch_size=8, seed=3)
    with keep:
        suffix.fit(batches, validation_data=validation, epochs=3, callbacks=[keep], shuffle=False, verbose=0)
    assert keep.temperature == whole.keep.temperature
    assert_close(copy_weights(model), whole.after, rtol=1e-5, atol=1e-7)


def test_validation_images_change_nothing_but_the_temperature(root):
    judged = tune()
    alone = tune(labels={"train": LABELS["train"]}, show=False)
    assert alone.keep.temperature == 1 and np.isnan(alone.keep.best_loss) and "val_loss" not in alone.keep.history
    apply_temperature(alone.model, judged.keep.temperature)
    assert_close(copy_weights(alone.model), judged.after, rtol=1e-5, atol=1e-7)
    quiet = tune(show=False)
    assert quiet.keep.history["val_log_loss"] == judged.keep.history["val_log_loss"][-1:]
    assert quiet.keep.best_epoch == 3 and same_bits(quiet.after, judged.after)


def test_lengths_are_counted_in_steps(root):
    assert count_epochs(200, images=400, batch_size=32) == 15  # of 13 steps
    assert count_epochs(200, images=20_000, batch_size=32) == 1
    assert len(tune(steps=12, epochs=0).keep.history["loss"]) == 2  # of 5 steps


# ---- frozen and not


@pytest.mark.parametrize("stage", ["conv1", "conv2", "conv3", "head"])
def test_only_what_was_meant_changes(root, stage):
    tuned = tune(unfreeze_from=stage)
    assert tuned.keep.best_epoch > 0
    assert tuned.audit[["frozen_changed", "trainable_unchanged"]].to_numpy().sum() == 0
    stages = list(tuned.audit.index)
    expected = {name: int(stages.index(name) >= stages.index(stage)) for name in stages}
    assert tuned.audit["changed"].to_dict() == expected | {"head": 2}, "kernels, and no BatchNormalization"


def test_cached_and_uncached_training_are_the_same_to_rounding(root, monkeypatch):
    monkeypatch.setattr("helpers.training.fine_tuning.prepare_training", lambda model, pixels, **_: (model, pixels))
    uncached = tune(classifier())
    monkeypatch.undo()
    assert_close(tune().after, uncached.after, rtol=1e-3, atol=1e-5)


def test_trap_keras_lets_dropout_work_in_frozen_stages(root):
    model = classifier(stage_network(dropout=0.5))

    def losses(part):
        """Returns the loss of a step that changes nothing, and what it is without Dropout."""
        part.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
        images, labels = PIXELS["train"], LABELS["train"]
        return float(part.train_on_batch(images, labels)), float(part.evaluate(images, labels, verbose=0))

    for stage in ("head", "conv3"):
        freeze(model, unfreeze_from=stage)
        step, exact = losses(prepare_training(model, PIXELS, stage=stage, augmentation="light")[0])
        assert (step == pytest.approx(exact, rel=1e-5)) == (stage == "head"), "what learns keeps its Dropout"
    freeze(model, unfreeze_from="head")
    step, exact = losses(model)
    assert step != pytest.approx(exact, rel=1e-3), "Keras' way"


class Jitter(keras.layers.Layer):
    """Somebody's layer that draws from TensorFlow's own generator."""

    def call(self, x, training=False):
        import tensorflow as tf

        return x + tf.random.normal(tf.shape(x), stddev=0.1) if training else x


@pytest.mark.parametrize("noise", [Jitter(), keras.layers.Dropout(0.3), None], ids=["jitter", "dropout", "none"])
def test_the_same_seed_gives_the_same_bits_whatever_was_trained_before(root, noise):
    if noise:
        images = keras.Input((8, 8, 3), dtype="uint8")
        x = keras.layers.Conv2D(6, 3, name="conv1_conv")(keras.layers.Rescaling(1 / 255)(images))
        x = keras.layers.Conv2D(6, 3, name="conv3_conv")(noise(x))
        model = classifier(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x)))
    else:
        model = shared()[0]
    start, results = model.get_weights(), []
    for seed in (1, 2, 1):
        model.set_weights(start)
        results.append(tune(model, unfreeze_from="conv1", seed=seed).after)
    assert same_bits(results[0], results[2]) and not same_bits(results[0], results[1])


# ---- several steps at once


def test_several_steps_at_once_change_no_bit(root, monkeypatch):
    runs = []
    for number in (1, 2, 99):  # of 5 steps: all alone; the last execution incomplete; an epoch
        monkeypatch.setattr("helpers.training.fine_tuning.steps_at_once", lambda *_, number=number, **__: number)
        runs.append(tune(classifier(), batch_norm="train", min_lr_factor=0.1))
        changed = {path for path, value in runs[-1].after.items() if not np.array_equal(value, runs[-1].before[path])}
        assert {"conv3_bn/gamma", "conv3_bn/moving_mean"} <= changed and not any("conv2" in path for path in changed)
        assert runs[-1].keep.model.steps_per_execution == min(number, 5)
        assert same_bits(runs[-1].after, runs[0].after) and runs[-1].keep.history == runs[0].keep.history


def test_the_larger_the_network_the_fewer_steps_at_once():
    def steps(size, batch_size=32, filters=8):
        image = keras.Input((size, size, 3))
        x = keras.layers.Conv2D(filters, 3)(image)
        return steps_at_once(keras.Model(image, x), batch_size=batch_size)

    assert steps(8) > steps(32) > 10 * steps(224)
    assert steps(8) == pytest.approx(10 * steps(8, batch_size=320), rel=0.1)
    assert steps(224, filters=64) == 1 and steps(None) == 1


# ---- rates


def test_a_stages_factor_scales_its_steps():
    model = classifier()
    start, before = model.get_weights(), copy_weights(model)

    def one_step(lowest):
        model.set_weights(start)
        freeze(model, unfreeze_from="conv2")
        model.compile(make_optimizer(model, 1e-3, rates=lowest), "sparse_categorical_crossentropy")
        model.train_on_batch(PIXELS["train"], LABELS["train"])
        return {stage: distance(model, before, stage) for stage in ("conv2", "conv3", "head")}

    factors = layerwise_factors(model, 0.001)
    assert factors == pytest.approx({"conv1": 0.001, "conv2": 0.01, "conv3": 0.1, "head": 1.0})
    assert type(make_optimizer(model, 1e-3)) is keras.optimizers.Adam
    plain, scaled = one_step(1.0), one_step(0.001)
    for stage, moved in plain.items():
        assert scaled[stage] == pytest.approx(factors[stage] * moved, rel=1e-2)


def test_trap_keras_own_rule_for_a_layer_that_is_not_there_is_accepted_silently():
    model = classifier()
    optimizers = keras.optimizers.OptimizerMap(default_optimizer=keras.optimizers.SGD(0.1))
    optimizers["^conv9_conv/.*"] = keras.optimizers.SGD(0.0)  # meant for conv3_conv
    model.compile(keras.optimizers.MultiOptimizer(optimizers), "sparse_categorical_crossentropy")
    before = copy_weights(model)
    model.train_on_batch(PIXELS["train"], LABELS["train"])
    assert distance(model, before, "conv3") > 0, "Keras' way: no error, and the stage learns at the other rate"


def test_learning_rate_rises_and_falls_to_zero():
    schedule = warmup_cosine(1e-3, epochs=10, images=95, batch_size=10)
    rates = np.array([float(schedule(step)) for step in range(101)])
    assert rates[0] == pytest.approx(1e-4) and rates.argmax() == 10 and rates.max() == pytest.approx(1e-3)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert float(warmup_cosine(1e-3, epochs=1, images=5, batch_size=32)(0)) > 0, "a single step learns, too"
    for bad in ({"learning_rate": 0}, {"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` above 0"):
            warmup_cosine(**{"learning_rate": 1e-3, "epochs": 1, "images": 9, "batch_size": 2} | bad)


# ---- class weights, precision, batches in parts


def test_class_weights_change_the_head_and_the_training(root):
    features = np.random.default_rng(0).normal(size=(200, 4))
    even, uneven = np.arange(200) % 2, (np.arange(200) % 10 == 0).astype(int)
    expected = compute_class_weight("balanced", classes=np.arange(2), y=uneven)
    assert weigh_classes(uneven) == pytest.approx(dict(enumerate(expected))) and weigh_classes(uneven, "") is None
    plain, weighted = (fit_head(features, even, class_weight=weight) for weight in (None, "balanced"))
    assert np.array_equal(plain.coef_, weighted.coef_) and plain.losses_ == weighted.losses_
    features += uneven[:, None]
    plain, weighted = (fit_head(features, uneven, class_weight=weight) for weight in (None, "balanced"))
    assert (weighted.predict(features) == 1).sum() > 1.5 * (plain.predict(features) == 1).sum()
    labels = LABELS | {"train": np.where(np.arange(40) < 30, 0, LABELS["train"])}
    first, second = (tune(labels=labels, class_weight=weight).after for weight in ("", "balanced"))
    assert not np.allclose(first["head/bias"], second["head/bias"], atol=1e-4)


@pytest.mark.parametrize(
    "bad",
    [
        {"patience": -1},
        {"steps": 0},
        {"precision": "int8"},
        {"learning_rate": 0},
        {"class_weight": "even"},
        {"batch_parts": 2, "batch_norm": "train"},
        {"augmentation": "flop"},
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_at_once(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`.*Received"):
        Recipe(**bad)


@pytest.mark.parametrize(
    ("changes", "min_lr_factor", "tolerance"),
    [
        ({"precision": "mixed_bfloat16"}, 1.0, 0.1),
        ({"precision": "mixed_float16"}, 0.1, 0.1),
        ({"batch_parts": 2}, 0.1, 0.02),
    ],
)
def test_another_way_to_compute_makes_the_same_steps_to_rounding(root, changes, min_lr_factor, tolerance):
    exact, other = tune(min_lr_factor=min_lr_factor), tune(**changes, min_lr_factor=min_lr_factor)
    for name in ("conv3_conv/kernel", "head/kernel"):
        # Of five seeds, bfloat16 deviated by 3 to 6 % of the way gone, float16 by up to 3 %; nothing learned would be
        # 100 %, and a rate of its own for the stage that is ignored about as much.
        gone, off = exact.after[name] - exact.before[name], other.after[name] - exact.after[name]
        assert 0 < np.linalg.norm(off) < tolerance * np.linalg.norm(gone)
    assert other.keep.history["val_log_loss"] == pytest.approx(exact.keep.history["val_log_loss"], abs=0.01)
    assert {layer.compute_dtype for layer in other.model.layers if layer.weights} == {"float32"}
    assert other.audit["frozen_changed"].sum() == 0 and other.keep.best_epoch > 0
    other.model.save(root / "x.keras")
    loaded = load_model(root / "x.keras")
    np.testing.assert_allclose(call(loaded, PIXELS["validation"]), call(other.model, PIXELS["validation"]), atol=1e-6)


# ---- augmentation


def test_views_of_an_image_are_fixed_and_epochs_differ():
    images = random_images(5)
    augmented = Augmented(images, "flip,crop,rotate,light", seed=3)
    first, again = augmented.at_epoch(2)[:], Augmented(images[::-1], "flip,crop,rotate,light", seed=3).at_epoch(2)[:]
    assert first.shape == images.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again[::-1]), "whatever the order"
    assert not np.array_equal(first, augmented.at_epoch(3)[:]) and not np.array_equal(first, images)
    views = zip(Augmented(images, "flip").at_epoch(0)[:], images, strict=True)
    assert sum(np.array_equal(view, image) for view, image in views) in range(1, 5), "some are flipped, and not all"


def test_augmented_images_are_not_stored(root):
    tuned = tune(augmentation="flip,light")
    assert tuned.audit["frozen_changed"].sum() == 0 and tuned.keep.best_epoch > 0
    assert not list((root / "runs").glob(".activations/*8x8x6*"))
    assert not np.allclose(tuned.after["head/bias"], tune().after["head/bias"]), "augmentation has an effect"


# ---- several devices

DEVICES = """
import pathlib, shutil, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import helpers
helpers.ROOT = pathlib.Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
name, devices = sys.argv[3], int(sys.argv[4])
from helpers import _keras
if devices == 2:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    _keras._strategy = lambda: strategy
import test_fine_tuning as t
from helpers.backbones import load_backbone
from helpers.training import load_classifier, save_model
from helpers.training.checkpoint import Checkpoint
write = Checkpoint._write
def copied(self):
    write(self)
    if self.epoch == 2:
        shutil.copy(self.file, helpers.ROOT / "second_epoch.state")
Checkpoint._write = copied
save_model(t.classifier(load_backbone("network.keras")), "x.keras", class_names=list("abc"), resize="crop")
model, _ = load_classifier("x.keras")
keep = t.tune(model, file=helpers.ROOT / f"{name}.state", min_lr_factor=0.1, epochs=4).keep
kernel = model.get_layer("conv3_conv").kernel.value
print(len(getattr(kernel, "values", [kernel])), keep.history["val_log_loss"])
np.savez(helpers.ROOT / name, *model.get_weights())
"""


def test_two_devices_give_the_same_as_one_and_a_training_that_goes_on_the_same_bits(root):
    stage_network().save(root / "network.keras")
    said = {}
    for name, devices in (("one", 1), ("two", 2), ("second_epoch", 2)):  # the last one resumes what the second left
        arguments = [str(root), os.path.dirname(__file__), name, str(devices)]
        done = subprocess.run([sys.executable, "-c", DEVICES, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.split()[0] == str(devices), "copies of each weight"
        said[name] = done.stdout
    one, two, resumed = (np.load(root / f"{name}.npz") for name in said)
    assert said["second_epoch"] == said["two"] and all(np.array_equal(two[name], resumed[name]) for name in two)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-3, atol=2e-5)
    start = classifier().get_weights()
    assert any(not np.allclose(one[name], value, atol=1e-4) for name, value in zip(one, start, strict=True))
