"""Stored activations are what the frozen layers compute; they are found by content, and computed once."""

import numpy as np
import psutil
import pytest
from networks import call, random_images, stage_network

from helpers.backbones import cut, freeze, keras
from helpers.training import activations as module
from helpers.training import attach_head, compute_activations, fit_head, load_activations, set_seed

IMAGES = random_images(11)


@pytest.fixture
def forwards(monkeypatch):
    """Notes each pass of images through a network: the shapes of what enters and comes out, and how many."""
    counted = []
    forward = module._forward

    def count(model, inputs, *args, **options):
        counted.append((model.inputs[0].shape[1:], model.outputs[0].shape[1:], len(inputs)))
        yield from forward(model, inputs, *args, **options)

    monkeypatch.setattr(module, "_forward", count)
    return counted


def expected(model, images, stage):
    return call(cut(model, stage)[0] if stage else model, images)


def close(values, wanted) -> None:
    np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-6)


# ---- exact


@pytest.mark.parametrize("stage", ["conv1", "conv2", "conv3", None])
def test_they_are_what_enters_the_stage_and_the_suffix_on_them_gives_the_whole(root, stage):
    model = stage_network()
    stored = load_activations(model, IMAGES, stage=stage)
    assert stored.dtype == np.float32 and stored.shape == expected(model, IMAGES, stage).shape
    close(stored, expected(model, IMAGES, stage))
    if stage:
        close(call(cut(model, stage)[1], np.asarray(stored)), call(model, IMAGES))


def test_parts_are_computed_together_and_equal_images_once(root, forwards):
    parts = {"train": IMAGES[:6], "validation": IMAGES[6:8], "test": IMAGES[[8, 9, 10, 0]], "none": IMAGES[:0]}
    loaded = load_activations(stage_network(), parts, stage="conv3")
    assert [count for _, _, count in forwards] == [11], "the twelfth is a copy"
    for part, array in parts.items():
        assert loaded[part].shape == (len(array), 8, 8, 6)
        if len(array):
            close(loaded[part], expected(stage_network(), array, "conv3"))
    np.testing.assert_array_equal(loaded["test"][3], loaded["train"][0])


# ---- found again, or not


def test_the_second_time_nothing_is_computed(root, forwards):
    model = stage_network()
    first = np.asarray(load_activations(model, IMAGES, stage="conv3"))
    for again in (IMAGES, IMAGES[2:5], {"train": IMAGES[:4], "test": IMAGES[4:]}):
        load_activations(model, again, stage="conv3")
    np.testing.assert_array_equal(load_activations(model, IMAGES[::-1], stage="conv3"), first[::-1])
    assert len(forwards) == 1


def test_what_they_took_is_remembered(root):
    network, images = stage_network(), IMAGES[:8]
    below = load_activations(network, images, stage="conv2").seconds
    first = load_activations(network, images, stage="conv3")
    assert first.seconds > below > 0, "it counts from the images on"
    again = load_activations(network, images[:4], stage="conv3")
    assert again.seconds == pytest.approx(first.seconds / 2)


def test_saving_loading_freezing_and_a_head_do_not_matter(root, forwards):
    network = stage_network()
    load_activations(network, IMAGES, stage="conv3")
    freeze(network, unfreeze_from="conv2")
    network.save(root / "x.keras")
    head = fit_head(call(network, IMAGES), np.arange(11) % 2)
    for same in (
        network,
        keras.models.load_model(root / "x.keras"),
        attach_head(network, head, class_names=["a", "b"]),
    ):
        load_activations(same, IMAGES, stage="conv3")
    assert len(forwards) == 1


def change_a_weight(network):
    kernel = network.get_layer("conv2_conv").kernel
    kernel.assign(np.nextafter(np.array(kernel), np.inf))  # the least change there is


def change_a_statistic(network):
    network.get_layer("conv1_bn").moving_mean.assign(np.full(6, 1e-3))


@pytest.mark.parametrize("change", [change_a_weight, change_a_statistic])
def test_any_change_below_the_cut_point_computes_again_and_one_above_does_not(root, forwards, change):
    network = stage_network()
    load_activations(network, IMAGES, stage="conv3")
    change(network)
    close(load_activations(network, IMAGES, stage="conv3"), expected(network, IMAGES, "conv3"))
    assert len(forwards) == 2
    network.get_layer("conv3_conv").kernel.assign(np.ones((3, 3, 6, 6)))
    load_activations(network, IMAGES, stage="conv3")
    assert len(forwards) == 2


def test_other_settings_pixels_and_versions_compute_again(root, forwards, monkeypatch):
    network, other = stage_network(), stage_network(scale=1 / 127.5)
    for model, images in ((network, IMAGES), (other, IMAGES), (network, IMAGES[:, ::-1])):
        close(load_activations(model, images, stage="conv2"), expected(model, images, "conv2"))
    assert len(forwards) == 3
    monkeypatch.setattr(module, "_VERSION", "older")
    load_activations(network, IMAGES, stage="conv2")
    assert len(forwards) == 4


def test_activations_of_another_network_are_other_contents(root):
    """What enters a network may be activations itself: then their own content counts, and not their images'."""
    one, other = stage_network(), stage_network(scale=1 / 100)
    suffix = cut(one, "conv2")[1]
    for network in (one, other):
        entering = load_activations(network, IMAGES, stage="conv2")
        close(load_activations(suffix, entering), call(suffix, np.asarray(entering)))


def test_they_are_computed_from_the_nearest_cut_point_below(root, forwards):
    network, images = stage_network(), random_images(8)
    for stage in ("conv1", "conv3", None):
        close(load_activations(network, images, stage=stage), expected(network, images, stage))
    assert forwards[1][0] == forwards[0][1] and forwards[2][0] == forwards[1][1]
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
        def run(batch):
            sizes.append(len(batch))
            if len(batch) > 4:
                raise ResourceExhaustedError("OOM")
            return compiled(model)(batch)

        return run

    monkeypatch.setattr(module, "_compiled", small)
    network = stage_network()
    close(compute_activations(network, IMAGES), call(network, IMAGES))
    assert sizes == [11, 5, 2, 2, 2, 2, 2, 2]


def test_what_cannot_be_computed_is_refused_and_leaves_no_store(root, monkeypatch):
    network = stage_network()
    with pytest.raises(ValueError, match="'conv9'.*conv1, conv2, conv3"):
        load_activations(network, IMAGES, stage="conv9")
    with monkeypatch.context() as full_disk, pytest.raises(OSError, match="`unfreeze_from`"):
        full_disk.setenv("CACHE_GB", "1e-9")
        load_activations(network, IMAGES, stage="conv2")
    network.get_layer("conv2_bn").gamma.assign([np.nan] * 6)
    with pytest.raises(ValueError, match="not finite for 11 of 11 images from image 0 on"):
        load_activations(network, IMAGES, stage="conv3")
    assert not list((root / "runs" / ".activations").glob("*.npy"))


@pytest.mark.parametrize("count", [1, 7, 32, 33])
def test_outputs_in_memory_whatever_the_batches(count):
    network, images = stage_network(), random_images(count)
    outputs = compute_activations(network, images, batch_size=8)
    assert outputs.shape == (count, 6) and outputs.dtype == np.float32
    close(outputs, call(network, images))


def test_the_same_bits_again(root):
    set_seed(0)
    network = stage_network()
    first = np.asarray(load_activations(network, IMAGES, stage="conv3"))
    for file in (root / "runs" / ".activations").iterdir():
        file.unlink()
    np.testing.assert_array_equal(load_activations(network, IMAGES, stage="conv3"), first)
