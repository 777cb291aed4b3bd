"""How transferable: halves of classes, what is copied and frozen, pairs, and that a stopped experiment goes on."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import yaml

import helpers
from helpers.appendices import (
    LONGER,
    compare_arms,
    compare_costs,
    compare_runs,
    describe_transfer,
    halve_classes,
    open_classes,
    plot_transfer,
    published_results,
    summarize_transfer,
)
from helpers.appendices import transferability as module
from helpers.appendices.halves import LabelledImages
from helpers.appendices.transferability import TRANSFER_ARMS, Transferability, build_convnet
from helpers.backbones import copy_weights
from helpers.backbones.stages import find_stages
from helpers.study.trials import Trial

NAMES = list("abcdef")


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    """Six classes of 8x8 images, told apart by their brightness and a noisy pattern."""
    rng, pixels, labels = np.random.default_rng(0), {}, {}
    patterns = rng.integers(0, 200, (len(NAMES), 8, 8, 3))
    for part, count in (("train", 20), ("validation", 6), ("test", 10)):
        labels[part] = np.repeat(np.arange(len(NAMES)), count)
        noise = rng.integers(-50, 50, (len(labels[part]), 8, 8, 3))
        pixels[part] = np.clip(patterns[labels[part]] + noise, 0, 255).astype("uint8")
    return LabelledImages(pixels, labels, NAMES, pd.DataFrame())


def experiment(images, root, *, splits: int = 2, **options) -> Transferability:
    options = {"boundaries": [2], "folder": root / "bases", "epochs": 2, "batch_size": 16} | options
    return Transferability(images, halve_classes(images.class_names, splits=splits), **options)


# ---- halves


def test_halves_are_disjoint_and_whole_and_differ_unless_one_is_given():
    halves = halve_classes(NAMES, splits=8)
    assert all(not set(a) & set(b) and sorted([*a, *b]) == NAMES and len(a) == len(b) == 3 for a, b in halves)
    assert len({tuple(half.b) for half in halves}) == 8
    assert halves == halve_classes(NAMES[::-1], splits=8) != halve_classes(NAMES, splits=8, seed=1)
    a, b = halve_classes([f"{number:03d}" for number in range(101)], splits=3)[0]
    assert len(a) == 51 and len(b) == 50
    assert halve_classes(NAMES, splits=3, half_b=["e", "a"]) == [(["b", "c", "d", "f"], ["a", "e"])] * 3
    typed = ["e\u0301", "a"]  # é, as a Mac may write it
    assert halve_classes(["a", "b", "c", "\u00e9"], splits=2, half_b=typed)[0].b == ["a", "\u00e9"]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("abc", {}, "at least four classes"),
        ("abcd", {"half_b": ["a", "x", "b"]}, "half_b"),
        ("abcd", {"half_b": ["a"]}, "half_b"),
        ("abcd", {"half_b": list("abcd")}, "half_b"),
        ("abcd", {"splits": 7}, "`splits` of 2 to 6"),
        ("abcd", {"splits": 1}, "`splits`"),
    ],
)
def test_what_cannot_be_halved(names, options, message):
    with pytest.raises(ValueError, match=message):
        halve_classes(names, **({"splits": 2} | options))


def test_images_of_some_classes_get_labels_of_their_own(images):
    pixels, labels = images.of(["d", "b"])
    for part, (label, name) in product(("train", "validation", "test"), enumerate("db")):
        whole = images.pixels[part][images.labels[part] == NAMES.index(name)]
        np.testing.assert_array_equal(pixels[part][labels[part] == label], whole)


# ---- data


def test_letters_are_as_many_of_each_class_in_each_part_and_digits_stand_beside_them(root):
    options = {"image_size": 8, "images_per_class": 5}
    letters, digits, both = (open_classes(name, **options) for name in ("letters", "digits", "letters and digits"))
    for part, count in {"train": 4, "validation": 1, "test": 5}.items():
        assert np.bincount(letters.labels[part]).tolist() == [count] * len(letters.class_names)
    seen = {image.tobytes() for part in ("train", "validation") for image in letters.pixels[part]}
    assert np.mean([image.tobytes() in seen for image in letters.pixels["test"]]) < 0.01
    assert both.class_names == [*letters.class_names, *"0123456789"] and len(set(both.class_names)) > 50
    for images in (letters, digits):
        pixels, labels = both.of(images.class_names)
        np.testing.assert_array_equal(pixels["test"], images.pixels["test"])
        np.testing.assert_array_equal(labels["test"], images.labels["test"])
    with pytest.raises(ValueError, match="`image_size=8` with letters"):
        open_classes("letters", image_size=32)


def test_a_folder_of_ones_own(root, make_images):
    folder = make_images(root / "mine", {name: 12 for name in "abcd"}, size=24)
    (folder / "a" / "damaged.png").write_bytes(b"\x89PNG")
    found = open_classes("mine", image_size=16)
    assert found.class_names == list("abcd") and found.pixels["train"].shape[1:] == (16, 16, 3)
    assert found.problems["path"].tolist() == ["mine/a/damaged.png"]
    make_images(root / "mine", {"e": 2}, size=24, seed=1)
    with pytest.raises(ValueError, match="class 'e': too few images: 2 usable"):
        open_classes("mine", image_size=16, problems_file=root / "problems.csv")
    assert "damaged.png" in (root / "problems.csv").read_text()


# ---- the network


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("image_size", [8, 12, 32])
def test_the_network_has_eight_layers_that_can_be_cut_apart(batch_norm, image_size):
    network = build_convnet(3, image_size=image_size, batch_norm=batch_norm)
    layers = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "predictions"]
    assert list(find_stages(network)) == ["input", *layers]
    kinds = {type(layer).__name__ for layer in network.layers}
    assert ("BatchNormalization" in kinds) == batch_norm
    assert network.predict(np.zeros((2, image_size, image_size, 3), "uint8"), verbose=0).shape == (2, 3)


def test_what_the_network_cannot_be(images, root):
    for wrong in ({"boundaries": [2, 8]}, {"network": "deep"}):
        with pytest.raises(ValueError, match="Expected `(boundaries|networks)`"):
            experiment(images, root, **wrong)
    with pytest.raises(ValueError, match="`image_size` of at least 8"):
        build_convnet(3, image_size=4)


# ---- the arms


@pytest.mark.parametrize("network", ["plain", "batch_norm"])
def test_copied_means_copied_and_frozen_means_bit_equal(images, root, monkeypatch, network):
    transfer = experiment(images, root, network=network, epochs=1)
    bases = {half: transfer._base(f"base {half}", 1) for half in "AB"}
    original, started = module.fine_tune, {}

    def spy(model, *arguments, **options):
        started.update(copy_weights(model))
        return original(model, *arguments, **options)

    monkeypatch.setattr(module, "fine_tune", spy)
    for arm in TRANSFER_ARMS:
        transfer.run_trial(Trial("transfer", arm, stage="conv3", learning_rate=2e-3, seed=1))
        after, count = copy_weights(transfer._model(3)), transfer._count(2)
        lower = list(started)[:count]
        assert {path.split("/")[0].removesuffix("_bn") for path in lower} == {"conv1", "conv2"}
        source = transfer._drawn("random", 1) if arm.startswith("random") else bases[arm[0]]
        for path, weight in zip(lower, source[:count], strict=True):
            np.testing.assert_array_equal(started[path], weight, err_msg=arm)
        changed = {path for path in after if after[path].tobytes() != started[path].tobytes()}
        assert bool(set(lower) & changed) == arm.endswith("+"), arm
        assert {"conv3/kernel", "predictions/kernel"} <= changed
        for path, weight in list(zip(started, source, strict=True))[count:]:
            if path.endswith("kernel"):
                assert not np.array_equal(started[path], weight), f"{arm}: {path} was to be drawn anew"


def test_arms_of_a_split_begin_with_the_same_upper_layers(images, root):
    first, again = (experiment(images, root)._drawn("above", 0) for _ in range(2))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    for role, split in (("above", 1), ("base B", 0)):
        assert not np.array_equal(first[0], experiment(images, root)._drawn(role, split)[0])


@pytest.fixture(scope="module")
def results(images, tmp_path_factory):
    with pytest.MonkeyPatch.context() as elsewhere:
        root = tmp_path_factory.mktemp("root")
        elsewhere.setattr(helpers, "ROOT", root)
        return experiment(images, root).run()


def test_the_table_has_every_arm_and_pairs_by_split(results):
    assert len(results) == 2 * (3 + len(TRANSFER_ARMS))
    base = results[results["arm"] == "base B"].set_index("split")["accuracy"]
    others = results[results["n"] > 0]
    assert others.groupby(["arm", "n"])["split"].nunique().unique().tolist() == [2]
    np.testing.assert_allclose(others["difference"], others["accuracy"] - others["split"].map(base))
    assert results["outcome"].eq("all 2 epochs").sum() == len(results) - 2  # the longer base has four
    summary = summarize_transfer(results)
    assert set(zip(summary["arm"], summary["n"], strict=True)) >= {(arm, 2) for arm in TRANSFER_ARMS}


def test_a_stopped_experiment_goes_on_to_the_same_table(images, root, results, monkeypatch):
    """Also without the bases' weights, as on another machine."""
    original, calls = Transferability.run_trial, []

    def stops(self, trial):
        calls.append(trial)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return original(self, trial)

    monkeypatch.setattr(Transferability, "run_trial", stops)
    with pytest.raises(KeyboardInterrupt):
        experiment(images, root).run()
    for file in (root / "bases").rglob("*.npz"):
        file.unlink()
    resumed = experiment(images, root).run()
    assert len(calls) == len(results) + 1 + 4, "what was interrupted, and the four bases, are learned again"
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), results.drop(columns="seconds"))
    calls[:] = 8 * [None]
    with pytest.raises(KeyboardInterrupt):
        experiment(images, root, epochs=3).run()
    assert len(calls) == 9 and [*root.rglob("plain-1.jsonl")], "another recipe begins anew, beside the other"
    pd.testing.assert_frame_equal(experiment(images, root).run(), resumed)
    assert len(calls) == 9, "which is found again"


def test_the_test_images_choose_nothing(images, root):
    """Other test images with other labels change what is found, and not a bit of any weight."""
    noise = np.random.default_rng(1).integers(0, 255, images.pixels["test"].shape).astype("uint8")
    pixels, labels = images.pixels | {"test": noise}, images.labels | {"test": images.labels["test"][::-1].copy()}
    found, weights = [], []
    for given in (images, images._replace(pixels=pixels, labels=labels)):
        transfer = experiment(given, root / str(len(found)))
        found.append(transfer.run_trial(Trial("transfer", "AnB", stage="conv3", learning_rate=2e-3)))
        weights.append(transfer._model(3).get_weights())
    assert found[0]["accuracy"] != found[1]["accuracy"]
    assert all(np.array_equal(one, other) for one, other in zip(*weights, strict=True))


# ---- what the results say


def test_arms_are_compared_split_by_split():
    """Both arms vary much between splits, and their difference does not."""
    rows = [("x", split, "BnB+", n, 0.1 * split) for split in range(4) for n in (1, 2)]
    rows += [("x", split, "AnB+", n, 0.101 * split + 0.02) for split in range(4) for n in (1, 2)]
    results = pd.DataFrame(rows, columns=["network", "split", "arm", "n", "difference"])
    found = compare_arms(results, "BnB+", "AnB+").set_index("n")
    assert found.loc["all", "difference"] == pytest.approx(0.0215)
    assert not found["contains_zero"].any() and list(found.index) == [1, 2, "all"]
    assert compare_arms(results, "AnB+", "AnB+")["contains_zero"].all()


def test_the_figure_says_what_it_shows():
    rows = [(arm, n, 0.01 * n + shift) for shift, arm in ((0.1, "BnB"), (-0.2, "AnB")) for n in (2, 6)]
    rows.append((LONGER, 0, 0.05))
    summary = pd.DataFrame(rows, columns=["arm", "n", "difference"]).assign(network="plain")
    summary = summary.assign(low=summary["difference"] - 0.01, high=summary["difference"] + 0.03)
    figure = plot_transfer(summary)
    (axes,) = figure.axes
    line, _, (bars,) = next(curve for curve in axes.containers if curve.get_label() == "AnB").lines
    np.testing.assert_allclose(line.get_ydata(), [-18, -14])
    np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], [[-19, -15], [-15, -11]])
    (longer,) = (line for line in axes.lines if line.get_label() == "base, twice as long")
    assert longer.get_ydata()[0] == pytest.approx(5)
    assert "plain, AnB: 2: -18.0, 6: -14.0." in figure.description


def test_each_network_is_described_and_compared_by_itself(results):
    other = results.assign(network="other", difference=results["difference"] + 0.1 * (results["arm"] == "AnB+"))
    both = pd.concat([results, other])
    lines = describe_transfer(summarize_transfer(both)).splitlines()
    for network in ("plain", "other"):
        assert sum(line.startswith(f"{network}, AnB+ at n=2: ") for line in lines) == 1
    found = compare_arms(both, "BnB+", "AnB+").query("n == 'all'").set_index("network")["difference"]
    assert found["other"] - found["plain"] == pytest.approx(0.1)


def test_costs_are_those_of_twins():
    seconds = {"BnB": 1, "BnB+": 5, "AnB": 2, "AnB+": 3, "random frozen": 9}
    rows = [("x", split, arm, n, seconds[arm] * n + split) for split, arm, n in product((0, 1, 2), seconds, (1, 2))]
    columns = ["network", "split", "arm", "n", "seconds"]
    found = compare_costs(pd.DataFrame([*rows, ("x", 0, "base B", 0, 7)], columns=columns))
    assert found.loc[("BnB", "x", 2)].tolist() == [3, 11, 3 / 11] and len(found) == 4


# ---- committed tables


def test_the_published_table_gives_the_papers_curves():
    """In points, at n = 1 to 7: means over the networks whose training logs the authors published."""
    published = published_results()
    paper = published[published["network"] == "Yosinski et al. 2014"]
    curves = {
        "BnB": [0.35, 0.03, -0.21, -1.85, -2.97, -0.45, 0.00],
        "AnB": [0.31, -0.12, -0.62, -2.53, -4.71, -4.45, -8.26],
        "BnB+": [0.26, 0.64, 1.21, 1.36, 1.10, 0.85, 1.15],
        "AnB+": [0.32, 0.63, 1.30, 1.03, 1.05, 1.20, 1.24],
    }
    means = 100 * paper.groupby(["arm", "n"])["difference"].mean()
    for arm, curve in curves.items():
        np.testing.assert_allclose(means[arm], curve, atol=0.006)
    found = [compare_runs(paper, "BnB+", "AnB+", layers=layers) for layers in (range(1, 8), range(5, 8))]
    assert [round(100 * f["difference"], 2) for f in found] == [0.0, 0.15]
    assert [round(100 * f["error"], 2) for f in found] == [0.15, 0.09]


def test_the_full_results_are_those_of_their_parameters():
    parameters = yaml.safe_load((helpers.ROOT / "data" / "how_transferable_full.yaml").read_text())
    full = pd.read_csv(helpers.ROOT / "data" / "how_transferable_full.csv")
    assert set(full["network"]) == set(parameters["networks"])
    assert len(full) == len(parameters["networks"]) * parameters["splits"] * (3 + 7 * len(TRANSFER_ARMS))
    assert full[full["arm"] != LONGER]["outcome"].unique().tolist() == [f"all {parameters['epochs']} epochs"]
