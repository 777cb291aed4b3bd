"""Predictions of a saved classifier for image files: `python -m helpers.predict MODEL FOLDER -o predictions.csv`.

Images are decoded by threads, a few ahead of the network, and each batch's rows are written as soon as they are
known. So any number of images takes the same memory, and an interrupted command resumes.
"""

import argparse
import csv
import hashlib
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
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
        FileNotFoundError: no such model or folder.
        ValueError: the model's file is no whole classifier, or there is no image in the folder.
        OSError: the output cannot be written, or another process is writing it.
        KeyboardInterrupt: its message says where the rows so far are.
    """
    output = resolve_path(output)
    _predict(resolve_path(model), resolve_path(folder), output)
    return load_predictions(output)


def load_predictions(path: str | Path) -> pd.DataFrame:
    """Returns a table that `predict_folder` wrote, with every name as it was ("007", "NA", "=a, b")."""
    table = read_texts(path)
    numbers = {name: pd.to_numeric(table[name]) for name in ("probability", "runner_up_probability")}
    ood = table["unlike"].map({"True": True, "False": False}).astype("boolean")
    return table.assign(**numbers, unlike=ood)


def _predict(model: Path, folder: Path, output: Path) -> tuple["_Classifier", "_Rows"]:
    """Writes the output, and returns the classifier and the rows, which are counted."""
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
    lock = output.with_name(f"{partial.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            rows = _Rows(partial)
            try:
                besides = {stored_path(path) for path in (output, partial, lock)}
                classifier = _predict_files(model, folder, rows, besides=besides)
                os.replace(partial, output)
            except KeyboardInterrupt:
                where = f"{rows.images:,} images are done and kept in {partial}: the same command resumes."
                raise KeyboardInterrupt(f"Interrupted. {where if rows.images else 'No image is done.'}") from None
            finally:
                if not rows.images:
                    partial.unlink(missing_ok=True)
                with suppress(OSError):  # on Windows, where an open file cannot go, the lock removes it
                    lock.unlink()
    except Timeout:
        raise OSError(f"Another process is writing {output}. Wait for it, or name another file.") from None
    return classifier, rows


def _predict_files(model: Path, folder: Path, rows: "_Rows", *, besides: set[str]) -> "_Classifier":
    """Adds the rows of all files below the folder but those named, and returns the classifier."""

    def files(besides: set[str]) -> Iterator[tuple[str, str, str]]:
        return (file for file in list_files(folder) if file[1] != "stray file" and file[0] not in besides)

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

    total = sum(1 for _ in files(besides)) - len(rows.done)  # counted, and not kept: there may be millions
    classifier, nothing = _Classifier(model), ("",) * (len(COLUMNS) - 2)
    remaining = files(besides | rows.done)
    with closing(in_parallel(read, remaining, title="predicting", chunksize=4, total=total)) as images:
        while batch := list(itertools.islice(images, classifier.batch_size)):
            pixels = [image for _, image, _ in batch if image is not None]
            described = iter(classifier.describe(np.stack(pixels)) if pixels else ())
            rows.append([(path, *(nothing if problem else next(described)), problem) for path, _, problem in batch])
    if not rows.images:
        reason = f"None of {rows.skipped:,} can be read, for example {rows.example}"
        raise ValueError(f"Expected images in {folder}. {reason if rows.skipped else 'It holds no file.'}")
    return classifier


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


class _Rows:
    """Rows in a file: those of an earlier, interrupted call, and those that are added."""

    def __init__(self, path: Path):
        self.images = self.skipped = self.ood = 0
        self.example, self.done, self._path = "", set(), path
        whole = _whole_rows(path) if path.exists() else 0
        with open(path, "ab") as file:
            file.truncate(whole)
        if whole:
            earlier = read_texts(path)
            self.done = set(earlier["path"])
            self._count(earlier.itertuples(index=False, name=None))
        else:
            self.append([COLUMNS], count=False)

    def append(self, rows: list[tuple], *, count: bool = True) -> None:
        """Adds rows to the file."""
        try:
            with open(self._path, "a", newline="", encoding="utf-8") as file:
                # all texts in quotes: with fewer, a name that holds nothing but a "\r" would end its row
                csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows(rows)
        except OSError as error:
            kept = f"{self.images:,} images are done and kept in it: the same command resumes."
            raise OSError(f"{self._path} cannot be written: {error.strerror}. {kept}") from None
        if count:
            self._count(rows)

    def _count(self, rows: Iterable[tuple]) -> None:
        for path, *_, ood, problem in rows:
            self.images += not problem
            self.skipped += bool(problem)
            self.ood += ood in (True, "True")
            self.example = self.example or (problem and f"{path}: {problem}")


def _whole_rows(path: Path) -> int:
    """Returns how many bytes of a CSV file are whole rows: a power cut may have left half of one."""
    whole = position = quotes = 0
    with open(path, "rb") as lines:
        for line in lines:
            position += len(line)
            quotes += line.count(b'"')
            if line.endswith(b"\n") and quotes % 2 == 0:
                whole = position
    return whole


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
    paths = [Path(os.path.abspath(os.path.expanduser(path))) for path in (asked.model, asked.folder, asked.output)]
    try:
        classifier, rows = _predict(*paths)
    except (ValueError, OSError, MemoryError) as error:
        print(wrapped(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print("\n" + wrapped(str(interruption) or "Interrupted, before the first image."), file=sys.stderr)
        return 130
    known = classifier.ood is not None
    ood = f", {rows.ood:,} of them unlike the training data" if known else ""
    print(wrapped(f"{rows.images:,} image{'s' * (rows.images != 1)} predicted{ood}: {asked.output}"))
    if rows.skipped:
        print(wrapped(f"{rows.skipped:,} file{'s' * (rows.skipped != 1)} skipped: the column `problem` says why."))
    if not known:
        print(
            wrapped("The column `unlike` is empty: the classifier was saved without enough training images to tell.")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
