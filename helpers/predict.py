"""Predictions of a saved classifier for image files: `python -m helpers.predict MODEL FOLDER -o predictions.csv`.

Images are decoded by threads, a few ahead of the network, and each batch's rows are written as soon as they are
known. So many images take little more memory than few, and an interrupted command resumes.
"""

import argparse
import csv
import hashlib
import io
import itertools
import os
import sys
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from helpers import resolve_path, wrapped
from helpers.data.checks import explain
from helpers.data.parallel import in_parallel
from helpers.data.reading import read_file, read_pixels
from helpers.data.sources import list_files
from helpers.data.tables import read_texts, stored_path

COLUMNS = ("path", "label", "probability", "runner_up", "runner_up_probability", "unlike", "problem")


def predict_folder(model: str | Path, folder: str | Path, *, output: str | Path) -> pd.DataFrame:
    """Returns what a classifier predicts for each image below a folder, and writes it as CSV.

    Images are read by the rule that is stored with the classifier, as in training. Rows are written to a file beside
    the output, which gets its name at the end; after an interruption the same call resumes.

    Args:
        model: a file that `save_model` wrote, loaded in Keras' safe mode: no code from it is run.
        folder: of images, with folders in it or not; or one image; or an archive of images.
        output: the CSV file; an older one is replaced at the end.

    Returns:
        A row for each file that is not hidden: path, label and probability (0..1) of the most probable class,
        runner_up and runner_up_probability of the next one, unlike (bool: out of distribution, see
        `helpers.training.ood`; NA if the classifier's file cannot tell), and problem ("", or why the file was
        skipped, and then the other columns are empty).

    Raises:
        ValueError: the model's file is no whole classifier, or there is no image in the folder.
        OSError: no such model or folder; the output cannot be written, or another process is writing it.
        KeyboardInterrupt: its message says where the rows so far are.
    """
    model, folder, output = map(resolve_path, (model, folder, output))
    if not model.is_file():
        raise FileNotFoundError(f"Expected the file of a saved classifier. There is no file {model}.")
    if not folder.exists():
        raise FileNotFoundError(f"Expected a folder of images, or one image. There is no {folder}.")
    if output.is_dir():
        raise IsADirectoryError(f"Expected a file to write to. {output} is a folder: name a file in it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(model, "rb") as file:
        key = hashlib.file_digest(file, "sha256").digest() + os.fsencode(folder)
    partial = output.with_name(f"{output.stem}.partial-{hashlib.sha256(key).hexdigest()[:8]}.csv")
    lock = partial.with_name(f"{partial.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                table = _predict_files(model, _list_images(folder, without=(output, partial, lock)), partial)
                if (table["problem"] != "").all():
                    partial.unlink()
                    reason = f"None of {len(table):,} can be read, such as {table['path'][0]}: {table['problem'][0]}"
                    raise ValueError(f"Expected images in {folder}. {reason}")
                os.replace(partial, output)
                return table
            finally:
                with suppress(OSError):  # on Windows, where an open file cannot go, the lock removes it
                    lock.unlink()
    except Timeout:
        raise OSError(f"Another process is writing {output}. Wait for it, or name another file.") from None


def _list_images(folder: Path, *, without: tuple[Path, ...]) -> list[tuple[str, str, str]]:
    """Returns path, problem and reason of each file that is not hidden, as `list_files` does; ValueError for none."""
    own = {stored_path(path) for path in without}
    files = [file for file in list_files(folder) if file[1] != "stray file" and file[0] not in own]
    if not files:
        raise ValueError(f"Expected images in {folder}. It holds no file.")
    return files


def load_predictions(path: str | Path) -> pd.DataFrame:
    """Returns a table that `predict_folder` wrote, with every name as it was ("007", "NA", "=a, b")."""
    table = read_texts(path)
    numbers = {name: pd.to_numeric(table[name]) for name in ("probability", "runner_up_probability")}
    ood = table["unlike"].map({"True": True, "False": False}).astype("boolean")
    return table.assign(**numbers, unlike=ood)


def _predict_files(model: Path, files: list[tuple[str, str, str]], partial: Path) -> pd.DataFrame:
    """Returns the table of all `files` (`_list_images`), after adding to a file of rows those that it lacks."""
    classifier, done = _Classifier(model), _keep_whole_rows(partial)
    remaining = [file for file in files if file[0] not in done]

    def read(file: tuple[str, str, str]) -> tuple[str, np.ndarray | None, str]:
        path, problem, reason = file
        content = b""
        try:
            if not problem:
                content = read_file(path)
                return path, read_pixels(io.BytesIO(content), **classifier.reading), ""
        except Exception as error:  # Pillow's plugins raise many kinds; each is a row
            problem, reason = explain(error, path, content)
        return path, None, f"{problem}: {reason}"

    try:
        with (
            open(partial, "a", newline="", encoding="utf-8") as file,
            closing(in_parallel(read, remaining, title="predicting", chunksize=4)) as images,
        ):
            # all texts in quotes: with fewer, a name that holds nothing but a "\r" would end its row
            rows = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
            if file.tell() == 0:
                rows.writerow(COLUMNS)
            while batch := list(itertools.islice(images, classifier.batch_size)):
                pixels = [image for _, image, _ in batch if image is not None]
                described = iter(classifier.describe(np.stack(pixels)) if pixels else ())
                for path, _, problem in batch:
                    rows.writerow((path, *(("",) * 5 if problem else next(described)), problem))
                file.flush()
                done.update(path for path, _, _ in batch)
    except (KeyboardInterrupt, OSError) as error:
        if not done:
            partial.unlink(missing_ok=True)
        kept = f"{len(done):,} images are done and kept in {partial}: the same command resumes." if done else ""
        if isinstance(error, OSError):
            raise OSError(f"{partial} cannot be written: {error.strerror}. {kept}") from None
        raise KeyboardInterrupt(f"Interrupted. {kept}") from None
    return load_predictions(partial)


def _keep_whole_rows(partial: Path) -> set[str]:
    """Returns the paths in a file of rows, without the end of which a power cut may have written half."""
    content = partial.read_bytes() if partial.exists() else b""
    while content and (content.count(b'"') % 2 or not content.endswith(b"\n")):  # a name may hold a line's end
        content = content[: content.rfind(b"\n", 0, -1) + 1]
    partial.write_bytes(content)
    return set(read_texts(partial)["path"]) if content else set()


class _Classifier:
    """A saved classifier, and what it says about images in the columns between path and problem."""

    def __init__(self, path: Path):
        # here, as TensorFlow takes seconds to start
        from helpers._keras import keras
        from helpers.backbones import features_tensor
        from helpers.backbones.graphs import free_name
        from helpers.training import load_classifier, load_ood_detector
        from helpers.training.activations import Inference

        model, settings = load_classifier(path)
        self.class_names, self.ood = settings["class_names"], load_ood_detector(path)
        self.reading = {name: settings[name] for name in ("resize", "white")} | {"image_size": model.input_shape[1:3]}
        outputs = model.outputs[0]
        if self.ood is not None:  # probabilities and features from one pass
            join = keras.layers.Concatenate(dtype="float32", name=free_name("outputs", model))
            outputs = join([outputs, features_tensor(model)])
        self._infer = Inference(keras.Model(model.inputs[0], outputs, name=model.name))
        self.batch_size = self._infer.batch_size

    def describe(self, pixels: np.ndarray) -> list[tuple]:
        """Returns label, probability, runner_up, runner_up_probability and unlike ("" if unknown) of each image."""
        outputs, classes = self._infer(pixels), len(self.class_names)
        probabilities = outputs[:, :classes]
        ood = [""] * len(outputs) if self.ood is None else self.ood.is_ood(outputs[:, classes:]).tolist()
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
        values = np.take_along_axis(probabilities, best, axis=1).astype("float64").round(6)
        return [
            (self.class_names[first], p, self.class_names[second], q, flag)
            for (first, second), (p, q), flag in zip(best.tolist(), values.tolist(), ood, strict=True)
        ]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 refused or stopped by an error, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.predict",
        description="Predicts images with a saved classifier, one row for each file. If interrupted, run the same "
        "command again: it resumes.",
    )
    parser.add_argument("model", metavar="MODEL", help="a classifier, such as runs/pets-ResNet50/chosen.keras")
    parser.add_argument("folder", metavar="FOLDER", help="a folder of images, one image, or an archive of images")
    parser.add_argument("-o", "--output", metavar="FILE", default="predictions.csv", help="default: predictions.csv")
    asked = parser.parse_args(arguments)
    paths = (asked.model, asked.folder, asked.output)
    model, folder, output = (os.path.abspath(os.path.expanduser(path)) for path in paths)
    try:
        table = predict_folder(model, folder, output=output)
    except (ValueError, OSError, MemoryError) as error:
        print(wrapped(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print("\n" + wrapped(str(interruption) or "Interrupted, before the first image."), file=sys.stderr)
        return 130
    predicted = table[table["problem"] == ""]
    images, skipped, known = len(predicted), len(table) - len(predicted), predicted["unlike"].notna().all()
    ood = f", {predicted['unlike'].sum():,} of them unlike the training data" if known else ""
    print(wrapped(f"{images:,} image{'s' * (images != 1)} predicted{ood}: {asked.output}"))
    if skipped:
        print(wrapped(f"{skipped:,} file{'s' * (skipped != 1)} skipped: the column `problem` says why."))
    if not known:
        print(wrapped("The column `unlike` is empty: the classifier was saved with too few training images to tell."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
