import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("TQDM_DISABLE", "1")

LONGEST = ["test_notebooks", "test_walk", "test_study", "test_transferability", "test_fine_tuning"]
LONGEST += ["test_checkpoint", "test_export"]


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that in the end no process waits for another one's long file."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))  # each file's own order stays


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C as Python has it, also where the tests were started with SIGINT ignored, as by nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def make_images():
    """Returns a function that writes class folders of random images and returns the folder."""

    def make(folder: Path, classes: dict[str, int], *, size: int = 16, suffix: str = "png", seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        for shade, (label, count) in enumerate(classes.items()):
            (folder / label).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                noise = rng.integers(0, 60, (size, size, 3)) + 60 * (shade % 4)
                Image.fromarray(noise.astype("uint8")).save(folder / label / f"{index:03d}.{suffix}")
        return folder

    return make


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty repository root: stores and runs made by a test stay in its own folder."""
    import helpers

    monkeypatch.setattr(helpers, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real photos and ImageNet weights, where REAL_DATA_DIR names a folder with them."""
    folder = os.environ.get("REAL_DATA_DIR", "")
    if not folder:
        pytest.skip("REAL_DATA_DIR is not set: it names a folder with data/ and weights/")
    if not (Path(folder) / "weights").is_dir():
        pytest.fail(f"REAL_DATA_DIR={folder} has no folder weights/")
    return Path(folder)
