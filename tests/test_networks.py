"""The comparison of networks: `make compare`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from networks import residual_network
from refresh import copy_tree

import helpers
from helpers import networks
from helpers._keras import keras
from helpers.data import check_images, exclude_problems, find_images, split_images
from helpers.networks import Candidate, describe_ranking, rank_networks, read_candidates, recommend

CLASSES = {"dark": 20, "middle": 20, "light": 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder that stands for the repository's root, with two networks of other image sizes and a broken file."""
    folder = tmp_path_factory.mktemp("networks")
    for name, size in (("small", 8), ("large", 12)):
        keras.utils.set_random_seed(size)
        residual_network(size=size, dtype="uint8").save(folder / f"{name}.keras")
    (folder / "broken.keras").write_bytes(b"PK")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "ROOT", folder)
        patch.setattr(networks, "ROOT", folder)
        yield folder


@pytest.fixture
def images(root, make_images, tmp_path):
    found = find_images(make_images(tmp_path / "pets", CLASSES))
    return split_images(exclude_problems(*check_images(found)))


def candidates(root, *names: str) -> list[Candidate]:
    return [Candidate(name, str(root / f"{name}.keras")) for name in names]


def test_networks_are_ranked_on_the_same_folds_and_not_by_test_images(root, images, tmp_path):
    ranked = rank_networks(images, candidates(root, "small", "large"), file=tmp_path / "n.jsonl")
    others, tests = images.copy(), images["split"] == "test"
    others.loc[tests, "label"] = np.roll(images.loc[tests, "label"], 5)
    other = rank_networks(others, candidates(root, "small", "large"), file=tmp_path / "other.jsonl")
    assert (others["label"] != images["label"]).sum() >= 5, "test labels are others"
    pd.testing.assert_frame_equal(other, ranked)
    best, second = ranked.to_dict("records")
    assert best["log_loss"] <= second["log_loss"] and best["behind"] == best["low"] == best["high"] == 0
    assert second["behind"] == pytest.approx(second["log_loss"] - best["log_loss"], abs=1e-4)
    assert second["low"] < second["behind"] < second["high"] and second["tied"] == (second["low"] <= 0)
    assert {row["image_size"] for row in (best, second)} == {8, 12} and (ranked["ms_per_image"] > 0).all()
    assert (ranked["accuracy"] > 0.5).all() and (ranked["problem"] == "").all(), "the classes differ in brightness"


def test_an_interrupted_comparison_resumes_and_failures_are_rows_that_are_tried_again(
    root, images, tmp_path, monkeypatch
):
    file, probed = tmp_path / "n.jsonl", []
    probe = networks._probe
    monkeypatch.setattr(networks, "_probe", lambda *x: probed.append(x[-1].arm) or probe(*x))
    first = rank_networks(images, candidates(root, "small", "broken"), file=file)
    assert (
        first["network"].str.contains("broken").tolist() == [False, True] and recommend(first) == first["network"][0]
    )
    assert "cannot be loaded" in first["problem"][1] and "cannot be loaded" in describe_ranking(first)
    again = rank_networks(images, candidates(root, "small", "broken", "large"), file=file)
    assert [name.rsplit("/")[-1] for name in probed] == [f"{n}.keras" for n in ("small", "broken", "broken", "large")]
    row = again.set_index("network").loc[first["network"][0]]
    assert row["log_loss"] == first["log_loss"][0]
    assert recommend(rank_networks(images, candidates(root, "broken"), file=file)) == ""
    fewer = images.drop(index=images.index[images["split"] == "train"][0])
    rank_networks(fewer, candidates(root, "small"), file=file)
    assert len(probed) == 6 and file.with_name("n-1.jsonl").exists(), "other images begin anew"


def test_the_cheapest_of_those_that_are_tied_is_recommended():
    rows = [("a", 0.5, True, 9.0), ("b", 0.6, True, 2.0), ("c", 0.9, False, 1.0)]
    ranked = pd.DataFrame(rows, columns=["network", "log_loss", "tied", "ms_per_image"])
    assert recommend(ranked) == "b"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "two networks or more"),
        ("MobileNetV2", "two networks or more"),
        ("MobileNetV2,ResNet50, MobileNetV2", "each network once. Received MobileNetV2 more than once"),
        ("MobileNetV2,ResNet5O", "no network ResNet5O .* Did you mean ResNet50"),
        ("MobileNetV2,missing.keras", "missing.keras"),
        ("MobileNetV2,ResNet50=missing.h5", "missing.h5"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(root, text, told):
    with pytest.raises((ValueError, OSError), match=told):
        read_candidates(text)


def test_what_a_list_may_name(root):
    (root / "w.weights.h5").touch()
    text = f"MobileNetV2, MobileNetV2=None,ResNet50={root / 'w.weights.h5'},small.keras@caffe,hub:some_preset"
    found = read_candidates(text, root)
    assert [candidate.name for candidate in found][:2] == ["MobileNetV2", "MobileNetV2=None"]
    assert found[3] == Candidate("small.keras@caffe", str(root / "small.keras"), "imagenet", "caffe")
    assert found[1].weights == "None" and found[4].backbone == "hub:some_preset"


GO_ON = """
import sys
import helpers.training.activations as activations
from helpers import data, training
from helpers.backbones import load_backbone
def forward(*arguments, **options): raise AssertionError("computed again")
activations._forward = forward
images, network = data.load_images("runs/x/images.csv"), load_backbone(sys.argv[1])
pixels, (labels, _) = data.load_pixels(images, image_size=network.input_shape[1:3]), data.encode_labels(images)
training.probe_depth(network, pixels, labels)
"""


def test_the_command_recommends_and_a_run_goes_on_without_computing_features_again(root, make_images, tmp_path):
    tree, pets = copy_tree(tmp_path / "repository"), make_images(tmp_path / "my pets", CLASSES)
    options = {"cwd": root, "env": os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "200"}}
    options |= {"capture_output": True, "text": True, "timeout": 300}
    command = [sys.executable, "-m", "helpers.networks", "-n", "x", "-p", "data", str(pets)]
    done = subprocess.run([*command, "-p", "backbones", "small.keras, large.keras"], **options)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    (taken,) = re.findall(r"make run DATA='.*my pets' BACKBONE=(.*)\n", done.stdout)
    assert f"Recommended: {Path(taken).name}, " in done.stdout and Path(taken).parent == root
    made = {path.name for path in (tree / "runs" / "x").iterdir()} - {".lock"}
    assert made == {"images.csv", "problems.csv", "networks.csv", "networks.jsonl"}
    done = subprocess.run([sys.executable, "-c", GO_ON, taken], **options | {"cwd": tree})
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(command, **options)
    assert refused.returncode == 2 and "two networks or more" in refused.stderr
