"""Stored activations are what the frozen layers compute; they are found by content, and computed once."""

import numpy as np
import psutil
import pytest
from networks import call, random_images, stage_network

from helpers.backbones import cut, freeze, keras
from helpers.training import activations as module
from helpers.training import attach_head, compute_activations, fit_head, load_activations, set_seed


@pytest.fixture
def forwards(monkeypatch):
    """Counts the images that pass through a network, by the name of the tensor that comes out."""
    counted = []
    forward = module._forward

    def count(model, inputs, batch_size, **options):
        counted.append((model.inputs[0].shape[1:], model.outputs[0].shape[1:], len(inputs)))
        yield from forward(model, inputs, batch_size, **options)

    monkeypatch.setattr(module, "_forward", count)
    return counted


def expected(model, images, stage):
    return call(cut(model, stage)[0], images)


# ---- exact


@pytest.mark.parametrize("stage", ["conv1", "conv2", "conv3", None])
def test_they_are_what_enters_the_stage(root, stage):
    model, images = stage_network(), random_images(11)
    stored = load_activations(model, images, stage=stage, batch_size=4)
    wanted = expected(model, images, stage) if stage else call(model, images)
    assert stored.dtype == np.float32 and stored.shape == wanted.shape
    np.testing.assert_allclose(stored, wanted, rtol=1e-5, atol=1e-6)


def test_a_suffix_on_them_gives_the_whole_networks_output(root):
    model, images = stage_network(), random_images(9)
    for stage in ("conv2", "conv3"):
        composed = call(cut(model, stage)[1], np.asarray(load_activations(model, images, stage=stage)))
        np.testing.assert_allclose(composed, call(model, images), rtol=1e-4, atol=1e-6)


def test_parts_are_computed_together_and_equal_images_once(root, forwards):
    images = random_images(10)
    parts = {"train": images[:6], "validation": images[6:8], "test": np.concatenate([images[8:], images[:1]])}
    loaded = load_activations(stage_network(), parts, stage="conv3")
    assert [count for _, _, count in forwards] == [10], "the eleventh is a copy"
    for part, array in parts.items():
        np.testing.assert_allclose(loaded[part], expected(stage_network(), array, "conv3"), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loaded["test"][2], loaded["train"][0])


# ---- found again, or not


def test_the_second_time_nothing_is_computed(root, forwards):
    model, images = stage_network(), random_images(8)
    first = np.asarray(load_activations(model, images, stage="conv3"))
    for again in (images, images[::-1], images[2:5], {"train": images[:4], "test": images[4:]}):
        load_activations(model, again, stage="conv3")
    np.testing.assert_array_equal(load_activations(model, images[::-1], stage="conv3"), first[::-1])
    assert len(forwards) == 1


def test_what_they_took_is_remembered(root):
    network, images = stage_network(), random_images(8)
    below = load_activations(network, images, stage="conv2").seconds
    first = load_activations(network, images, stage="conv3")
    assert first.seconds > below > 0, "it counts from the images on"
    again = load_activations(network, images[:4], stage="conv3")
    assert again.seconds == pytest.approx(first.seconds / 2)


def test_saving_loading_freezing_and_a_head_do_not_matter(root, forwards, tmp_path):
    network, images = stage_network(), random_images(8)
    load_activations(network, images, stage="conv3")
    freeze(network, unfreeze_from="conv2")
    load_activations(network, images, stage="conv3")
    network.save(tmp_path / "x.keras")
    load_activations(keras.models.load_model(tmp_path / "x.keras"), images, stage="conv3")
    head = fit_head(call(network, images), np.arange(8) % 2)
    load_activations(attach_head(network, head, class_names=["a", "b"]), images, stage="conv3")
    assert len(forwards) == 1


def change_a_weight(network):
    kernel = network.get_layer("conv2_conv").kernel
    kernel.assign(np.nextafter(np.array(kernel), np.inf))  # the least change there is


def change_a_statistic(network):
    network.get_layer("conv1_bn").moving_mean.assign(np.full(6, 1e-3))


@pytest.mark.parametrize("change", [change_a_weight, change_a_statistic])
def test_any_change_below_the_cut_point_computes_again_and_one_above_does_not(root, forwards, change):
    network, images = stage_network(), random_images(8)
    load_activations(network, images, stage="conv3")
    change(network)
    stored = load_activations(network, images, stage="conv3")
    np.testing.assert_allclose(stored, expected(network, images, "conv3"), rtol=1e-5, atol=1e-6)
    assert len(forwards) == 2
    network.get_layer("conv3_conv").kernel.assign(np.ones((3, 3, 6, 6)))
    load_activations(network, images, stage="conv3")
    assert len(forwards) == 2


def test_other_settings_of_a_layer_without_weights_compute_again(root, forwards):
    images = random_images(8)
    for scale in (1 / 255, 1 / 127.5):
        network = stage_network(scale=scale)
        stored = load_activations(network, images, stage="conv2")
        np.testing.assert_allclose(stored, expected(network, images, "conv2"), rtol=1e-5, atol=1e-6)
    assert len(forwards) == 2


def test_other_pixels_and_another_version_compute_again(root, forwards, monkeypatch):
    network, images = stage_network(), random_images(8)
    load_activations(network, images, stage="conv2")
    load_activations(network, images[:, ::-1], stage="conv2")
    assert len(forwards) == 2
    monkeypatch.setattr(module, "_VERSION", "older")
    load_activations(network, images, stage="conv2")
    assert len(forwards) == 3


def test_activations_of_another_network_are_other_contents(root):
    """What enters a network may be activations itself: then their own content counts, and not their images'."""
    images = random_images(6)
    one, other = stage_network(), stage_network(scale=1 / 100)
    suffix = cut(one, "conv2")[1]
    for network in (one, other):
        entering = load_activations(network, images, stage="conv2")
        expected_output = call(suffix, np.asarray(entering))
        np.testing.assert_allclose(load_activations(suffix, entering), expected_output, rtol=1e-4, atol=1e-6)


def test_they_are_computed_from_the_nearest_cut_point_below(root, forwards):
    network, images = stage_network(), random_images(8)
    for stage in ("conv1", "conv3"):
        load_activations(network, images, stage=stage)
    load_activations(network, images)
    shapes = [inner for inner, _, _ in forwards]
    assert shapes[1] == forwards[0][1] and shapes[2] == forwards[1][1]
    np.testing.assert_allclose(load_activations(network, images), call(network, images), rtol=1e-4, atol=1e-6)
    load_activations(network, random_images(9), stage="conv3")
    assert forwards[-1][0] == (8, 8, 3), "one image more than below: all from the images"


# ---- memory and bad input


def test_batches_are_smaller_where_memory_is_short(monkeypatch):
    network = stage_network()
    largest = 4 * 3 * 2 * 8 * 8 * 6
    memory = psutil.virtual_memory()
    for free, images in ((8 * 5 * largest, 5), (10**12, 32), (0, 1)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: memory._replace(available=free))
        assert module._batch_size(network) == images


def test_a_batch_that_is_too_large_for_a_gpu_is_halved(monkeypatch):
    class ResourceExhaustedError(Exception):
        pass

    compiled, sizes = module._compiled, []

    def small(model):
        forward = compiled(model)

        def run(batch):
            sizes.append(len(batch))
            if len(batch) > 4:
                raise ResourceExhaustedError("OOM")
            return forward(batch)

        return run

    monkeypatch.setattr(module, "_compiled", small)
    network, images = stage_network(), random_images(11)
    np.testing.assert_allclose(compute_activations(network, images), call(network, images), rtol=1e-5, atol=1e-6)
    assert sizes == [11, 5, 2, 2, 2, 2, 2, 2] and max(sizes[2:]) <= 4


def test_activations_that_are_not_finite_leave_no_store(root):
    network = stage_network()
    network.get_layer("conv2_bn").gamma.assign([np.nan] * 6)
    with pytest.raises(ValueError, match="not finite for 4 of 4 images from image 0 on"):
        load_activations(network, random_images(8), stage="conv3", batch_size=4)
    assert not list((root / "runs" / ".activations").glob("*.npy"))


def test_a_full_disk_says_what_to_do(root, monkeypatch):
    monkeypatch.setenv("CACHE_GB", "1e-9")
    with pytest.raises(OSError, match="`unfreeze_from`"):
        load_activations(stage_network(), random_images(4), stage="conv2")


def test_unknown_stages_and_no_images(root):
    with pytest.raises(ValueError, match="'conv9'.*conv1, conv2, conv3"):
        load_activations(stage_network(), random_images(4), stage="conv9")
    parts = {"train": random_images(4), "validation": random_images(4)[:0]}
    assert load_activations(stage_network(), parts, stage="conv2")["validation"].shape == (0, 8, 8, 6)


@pytest.mark.parametrize("count", [1, 7, 32, 33])
def test_outputs_in_memory_whatever_the_batches(count):
    network, images = stage_network(), random_images(count)
    outputs = compute_activations(network, images, batch_size=8)
    assert outputs.shape == (count, 6) and outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, call(network, images), rtol=1e-5, atol=1e-6)


def test_outputs_that_would_not_fit_into_memory_are_refused_before_the_work():
    many = np.broadcast_to(random_images(1), (10**10, 8, 8, 3))  # takes no memory itself
    with pytest.raises(MemoryError, match="10000000000 images take 240.0 GB"):
        compute_activations(stage_network(), many)


def test_the_same_bits_again(root):
    set_seed(0)
    network, images = stage_network(), random_images(20)
    first = np.asarray(load_activations(network, images, stage="conv3"))
    for file in (root / "runs" / ".activations").iterdir():
        file.unlink()
    np.testing.assert_array_equal(load_activations(network, images, stage="conv3"), first)
