"""All arms see the same changed images, severities are graded at any size, and the comparison is paired."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from networks import call, coloured_images, counted, stage_network
from PIL import Image

from helpers.backbones import keras
from helpers.evaluation import compare_shift, corruption_table, corruptions, shifted_table, worst_corruptions
from helpers.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from helpers.evaluation.intervals import accuracy_interval

layers = keras.layers


def scene(side: int) -> np.ndarray:
    """Returns a picture with edges, colours and fine detail that is the same at any size, about."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = 127 + 60 * np.sin(12 * x) + 40 * np.sin(25 * x * y)
    picture = np.stack([waves, 255 * y, 200 * (x > 0.5)], axis=-1)
    return picture.clip(0, 255).astype("uint8")


def change(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("side", [8, 32, 224])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_severity_changes_more_at_any_size(corruption, side):
    image = scene(side)
    kept = image.copy()
    changed = [corrupt(image, corruption, severity=severity) for severity in (0, *SEVERITIES)]
    assert all(each.shape == image.shape and each.dtype == np.uint8 for each in changed)
    np.testing.assert_array_equal(changed[0], kept)
    np.testing.assert_array_equal(image, kept)
    steps = [change(each, image) for each in changed]
    assert steps[-1] > 2 and (side == 8 or steps[-1] > 1.5 * steps[1])
    assert steps == sorted(steps) or (corruption, side) == ("jpeg", 8), "8 x 8 pixels are one block of JPEG's"


@pytest.mark.parametrize(
    ("corruption", "about"), [("occlusion", 0.35), ("brightness", 0.35), ("noise", 0.35), ("blur", 1.0)]
)
def test_it_means_the_same_for_small_images_as_for_large_ones(corruption, about):
    def typical(side: int) -> float:
        images = [np.roll(scene(side), number * side // 8, axis=1) for number in range(8)]
        return np.mean([change(corrupt(image, corruption, severity=4), image) for image in images])

    assert typical(32) == pytest.approx(typical(224), rel=about)


@pytest.mark.parametrize("corruption", ["noise", "brightness", "occlusion"])
def test_what_is_random_depends_on_the_image_alone(corruption):
    images = [np.roll(scene(32), number, axis=1) for number in range(8)]
    changed = [corrupt(image, corruption, severity=3) for image in images]
    for image, expected in zip(images, changed, strict=True):
        np.testing.assert_array_equal(corrupt(image.copy(), corruption, severity=3), expected)
    differences = {(other.astype(int) - image).tobytes() for image, other in zip(images, changed, strict=True)}
    assert len(differences) >= 2


def test_brightness_goes_both_ways_and_the_same_noise_becomes_stronger():
    grey = [np.full((16, 16, 3), 100 + number, "uint8") for number in range(20)]
    steps = {corrupt(image, "brightness", severity=2).astype(int)[0, 0, 0] - image[0, 0, 0] for image in grey}
    assert steps == {-51, 51}
    weak, strong = (corrupt(grey[0], "noise", severity=severity).astype(float) - 100 for severity in (1, 3))
    np.testing.assert_allclose(strong[abs(strong) < 99], 3 * weak[abs(strong) < 99], atol=2.1)
    assert strong.std() == pytest.approx(0.12 * 255, rel=0.1)


def test_an_occlusion_lies_within_the_image_and_has_its_share_of_the_area():
    image = scene(100)
    for number in range(20):
        image = np.roll(image, number, axis=1)
        hidden = (corrupt(image, "occlusion", severity=3) == image.mean(axis=(0, 1)).round()).all(axis=2)
        assert hidden.mean() == pytest.approx(0.2, abs=0.02)


# ---- the arms


def brightest(*, bias: float = 0.0) -> keras.Model:
    """Returns a classifier that sees which channel is brightest, on average; with a bias for the first class."""
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Rescaling(1.0)(images)
    x = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(images, layers.Softmax()(x))
    model.get_layer("head").set_weights([np.eye(3, dtype="float32"), np.array([bias, 0, 0], "float32")])
    return model


def test_every_arm_sees_the_same_corrupted_images():
    pixels, labels = coloured_images(12)
    network = stage_network()
    model = keras.Model(network.inputs[0], layers.Softmax()(layers.Dense(3)(network.outputs[0])))
    table = corruption_table({"frozen": model, "biased": brightest(bias=1e6)}, pixels, labels, images=0)
    assert len(table) == 26 * 2 and set(table["images"]) == {12}
    assert list(table.columns[:7]) == ["corruption", "severity", "arm", "accuracy", "low", "high", "images"]
    assert table.loc[table["arm"] == "biased", "accuracy"].nunique() == 1, "it sees nothing but its first class"
    for corruption, severity in (("none", 0), ("noise", 4), ("jpeg", 1), ("occlusion", 5)):
        changed = [corrupt(image, corruption, severity=severity) for image in pixels]
        expected = call(model, np.stack(changed)).argmax(axis=1) == labels
        (row,) = table.query("corruption == @corruption and severity == @severity and arm == 'frozen'").itertuples()
        assert row.correct.tolist() == expected.tolist() and row.accuracy == expected.mean()
        assert (row.low, row.high) == accuracy_interval(expected.sum(), 12)


def test_stored_images_are_read_in_parts(root, monkeypatch):
    stored, most = counted(120), []
    labels = np.arange(120) % 2
    images = keras.Input((2, 2, 3), dtype="uint8")
    x = layers.Dense(2)(layers.Flatten()(layers.Rescaling(1 / 255)(images)))
    model = keras.Model(images, layers.Softmax()(x))
    in_memory = corruption_table({"frozen": model}, np.asarray(stored), labels, images=100)
    read = type(stored).__getitem__
    monkeypatch.setattr(type(stored), "__getitem__", lambda self, rows: (most.append(len(rows)), read(self, rows))[1])
    from_disk = corruption_table({"frozen": model}, stored, labels, images=100)
    assert max(most) <= 32 and sum(most) == 100
    pd.testing.assert_frame_equal(from_disk, in_memory)


@pytest.mark.parametrize("count", [1, 7, 30, 99, 100, 1000])
def test_the_images_that_are_used_keep_the_classes_shares(count):
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = corruptions._choose(labels, count)
    assert len(chosen) == min(count, 100) == len(set(chosen)) and (np.diff(chosen) > 0).all()
    found = np.bincount(labels[chosen], minlength=3)
    np.testing.assert_allclose(found, len(chosen) * np.array([0.6, 0.3, 0.1]), atol=1)


# ---- the comparison


def make_table(right: dict[tuple, tuple]) -> pd.DataFrame:
    """Returns a table from (corruption, severity) to whether each image is right: frozen, then fine-tuned."""
    rows = [
        (*key, arm, len(correct), np.asarray(correct, bool), np.mean(correct))
        for key, pair in right.items()
        for arm, correct in zip(("frozen", "fine-tuned"), pair, strict=True)
    ]
    return pd.DataFrame(rows, columns=["corruption", "severity", "arm", "images", "correct", "accuracy"])


def test_the_comparison_is_paired_and_averages_severities_and_corruptions():
    first = np.array([1] * 90 + [0] * 10)
    better, much_better = first.copy(), first.copy()
    better[90:94], much_better[90:98] = 1, 1
    right = {("none", 0): (first, first), ("blur", 1): (first, better), ("blur", 2): (first, much_better)}
    found = compare_shift(make_table(right | {("jpeg", 1): (better, first)}))
    assert found.index.tolist() == ["none", "blur", "jpeg", "all"]
    assert found["difference"].tolist() == pytest.approx([0, 0.06, -0.04, 0.01])
    assert found.loc["blur", ["frozen", "fine-tuned"]].tolist() == pytest.approx([0.9, 0.96])
    assert found.loc["blur", "low"] > 0, "unpaired, 90 against 96 of 100 would show nothing"
    assert found.loc["none", "low"] < 0 < found.loc["none", "high"], "no disagreement is not certainty"
    assert ((found["low"] <= found["difference"]) & (found["difference"] <= found["high"])).all()
    assert (found["images"] == 100).all()


@pytest.mark.parametrize(("images", "disagreement"), [(50, 0.06), (150, 0.1), (500, 0.3)])
def test_intervals_hold_the_true_difference(images, disagreement):
    rng, truth, covered = np.random.default_rng(0), disagreement / 3, []
    for _ in range(150):
        hard = rng.random(images)  # an image is as hard at every severity: what varies are images
        second_only = hard < 2 * disagreement / 3
        first_only = (hard >= 2 * disagreement / 3) & (hard < disagreement)
        found = compare_shift(make_table({("blur", severity): (~second_only, ~first_only) for severity in (1, 2)}))
        covered.append(found.loc["blur", "low"] <= truth <= found.loc["blur", "high"])
    assert np.mean(covered) >= 0.92


@pytest.mark.parametrize("name", ["none", "all", "blur"])
def test_a_folder_of_any_name_is_not_the_images_as_they_are(name):
    right, wrong = np.ones(4), np.zeros(4)
    table = make_table({("none", 0): (right, right), ("noise", 1): (right, wrong), (name, 1): (wrong, right)})
    found = compare_shift(table)
    assert found.index.tolist() == ["none", "noise", name, "all"]
    assert found["difference"].tolist() == [0, -1, 1, 0]
    alone = compare_shift(table[table["corruption"] == name].query("severity == 1"))
    assert alone.index.tolist() == [name] and alone["difference"].tolist() == [1]


def test_the_worst_corruption_is_named_for_each_arm():
    right = {("none", 0): (9, 8), ("noise", 1): (7, 8), ("jpeg", 1): (8, 2), ("blur", 2): (0, 0)}
    table = {key: [[1] * count + [0] * (10 - count) for count in counts] for key, counts in right.items()}
    found = worst_corruptions(make_table(table))
    assert found["corruption"].to_dict() == {"frozen": "noise", "fine-tuned": "jpeg"}
    assert found["lost"].tolist() == pytest.approx([0.2, 0.6])
    assert found["before"].tolist() == [0.9, 0.8] and found["after"].tolist() == [0.7, 0.2]


# ---- a folder of the user's


@pytest.fixture
def folder(root):
    """Photos of three classes, told by their colour; the folders' names are not in the order of the channels."""

    def make(classes: dict[str, int], *, each: int = 4, name: str = "evening"):
        rng = np.random.default_rng(0)
        for label, channel in classes.items():
            (root / name / label).mkdir(parents=True)
            for number in range(each):
                image = rng.integers(0, 60, (12, 12, 3))
                image[:, :, channel] += 150
                Image.fromarray(image.astype("uint8")).save(root / name / label / f"{number}.png")
        return root / name

    return make


NAMES = ["zebra", "ant", "bee"]
"""In the order of the channels, and of the probabilities: not sorted."""


def test_shifted_images_are_judged_by_the_names_of_their_classes(folder):
    source = folder({"ant": 1, "bee": 2, "zebra": 0})
    (source / "ant" / "broken.png").write_bytes(b"no image")
    table = shifted_table({"frozen": brightest(), "biased": brightest(bias=1e6)}, source, class_names=NAMES)
    assert table["accuracy"].tolist() == pytest.approx([1, 1 / 3]) and table["images"].tolist() == [12, 12]
    assert table["corruption"].tolist() == 2 * ["evening"] and table["missing"].tolist() == ["", ""]
    assert table["left_out"].tolist() == [1, 1]
    found = compare_shift(table.replace({"arm": {"biased": "fine-tuned"}}))
    assert found.index.tolist() == ["evening"] and found.loc["evening", "difference"] == pytest.approx(-2 / 3)
    by_text = shifted_table({"frozen": brightest()}, "evening", class_names=NAMES)
    assert by_text["accuracy"].tolist() == [1], "a relative path counts from the repository's root"


def test_shifted_images_are_resized_as_for_the_training(folder):
    source = folder({"ant": 1, "bee": 2, "zebra": 0})
    for each in source.glob("*/*.png"):
        Image.open(each).resize((36, 12)).save(each)
    images = keras.Input((8, 8, 3), dtype="uint8")
    black = keras.ops.cast(keras.ops.equal(keras.ops.max(images[:, 0], axis=(1, 2)), 0), "float32")
    padded = keras.Model(images, keras.ops.stack([black, 1 - black, 0 * black], axis=-1))
    labels = np.repeat(["ant", "bee", "zebra"], 4)
    for rule, seen in (("pad", "zebra"), ("crop", "ant")):  # with a black border, all are of the first class
        (correct,) = shifted_table({"a": padded}, source, class_names=NAMES, resize=rule)["correct"]
        assert correct.tolist() == (labels == seen).tolist()


def test_classes_are_the_same_in_both_unicode_forms_and_a_missing_one_does_not_move_the_others(folder):
    names = ["zébra", unicodedata.normalize("NFD", "änt"), "bee"]
    source = folder({unicodedata.normalize("NFD", "zébra"): 0, "bee": 2})
    table = shifted_table({"frozen": brightest()}, source, class_names=names)
    assert table["accuracy"].tolist() == [1]
    assert unicodedata.normalize("NFC", table["missing"][0]) == unicodedata.normalize("NFC", "änt")


def test_folders_that_do_not_fit(folder):
    models = {"frozen": brightest()}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        shifted_table(models, "nowhere", class_names=NAMES)
    with pytest.raises(ValueError, match="zebra, ant, bee. Received Ant, wasp"):
        shifted_table(models, folder({"Ant": 1, "bee": 2, "wasp": 0}), class_names=NAMES)
    source = folder({"ant": 1, "bee": 2}, name="morning")
    for each in source.glob("*/*.png"):
        each.write_bytes(b"no image")
    with pytest.raises(ValueError, match="None of its 8 files"):
        shifted_table(models, source, class_names=NAMES)


@pytest.mark.slow
def test_real_photos(real_data, root):
    """Photos as they are, then smaller and smaller in their detail: blurred ones are recognised worse."""
    from helpers.backbones import load_backbone
    from helpers.data import check_images, find_images, load_pixels
    from helpers.training import attach_head, compute_activations, fit_head

    images = find_images(real_data / "data" / "hymenoptera")
    images, _ = check_images(images[images["problem"] == ""])
    weights = str(real_data / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5")
    network = load_backbone("MobileNetV2", weights=weights, image_size=96)
    images = images.assign(split=images["split"].replace("validation", "test"))
    pixels = load_pixels(images, image_size=(96, 96))
    labels = {part: (images.loc[images["split"] == part, "label"] == "bees").to_numpy(int) for part in pixels}
    head = fit_head(compute_activations(network, pixels["train"]), labels["train"])
    model = attach_head(network, head, class_names=["ants", "bees"])
    table = corruption_table({"frozen": model}, pixels["test"], labels["test"], images=100)
    accuracy = table.set_index(["corruption", "severity"])["accuracy"]
    assert accuracy["none", 0] > 0.8
    assert all(accuracy[name, 5] < accuracy["none", 0] for name in CORRUPTIONS)
