"""What a saved classifier says about new images: `python -m helpers.predict MODEL FOLDER -o predictions.csv`.

Images are decoded by threads, a few ahead of the network, and each row is written as soon as it is known. So any
number of them takes the same memory, and after an interruption the same command goes on.
"""

import argparse
import csv
import fcntl
import hashlib
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from helpers import resolve_path, wrapped
from helpers.data.checks import explain
from helpers.data.parallel import in_parallel
from helpers.data.reading import read_file, read_pixels
from helpers.data.sources import list_files
from helpers.data.tables import read_texts, stored_path

COLUMNS = ("path", "label", "probability", "runner_up", "runner_up_probability", "unlike", "problem")

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell begins with that a spreadsheet takes for a formula."""


def predict_folder(model: str | Path, folder: str | Path, *, output: str | Path) -> pd.DataFrame:
    """Returns what a classifier says about each image below a folder, and writes it as CSV.

    Each image is read by the rule that is stored with the classifier, exactly as in the training. Files that cannot
    be read have a row, too, that says why. Hidden files, and those that systems leave behind, are not looked at.

    The rows are written to a file beside the output that gets its name at the end. After an interruption the same
    call goes on with it: files that have a row in it are not looked at again.

    Names are written as they are, also those that a spreadsheet takes for formulas ("=a", "-1"): the table is data
    that programs read back. Import it into a spreadsheet as text.

    Args:
        model: a file that `save_model` wrote. It is loaded in Keras' safe mode: no code from it is run.
        folder: of images, with folders in it or not; or one image; or an archive of images. A relative path, here and
            in the others, is counted from the repository's root.
        output: the CSV file to be written; an older one is replaced at the end.

    Returns:
        A DataFrame with a row for each file: path (relative to the repository's root where it lies below, else
        absolute), label and probability (0..1) of the most probable class, runner_up and runner_up_probability of the
        next one, unlike (bool: unlike the images that the classifier learned from, see
        `helpers.training.familiarity`; NA if its file does not know them, or they were too few), and problem ("", or
        why the file was skipped, and then the other columns are empty).

    Raises:
        FileNotFoundError: no such model or folder.
        ValueError: the model's file is none that `save_model` wrote, or damaged; there is no image in the folder.
        OSError: the output cannot be written, or another process is just writing it.
        KeyboardInterrupt: its message says where the rows that are done are kept.
    """
    output = resolve_path(output)
    _predict(resolve_path(model), resolve_path(folder), output)
    return load_predictions(output)


def load_predictions(path: str | Path) -> pd.DataFrame:
    """Returns a table that `predict_folder` wrote, with every name as it was ("007", "NA", "=a, b")."""
    table = read_texts(path)
    numbers = {name: pd.to_numeric(table[name]) for name in ("probability", "runner_up_probability")}
    unlike = table["unlike"].map({"True": True, "False": False}).astype("boolean")
    return table.assign(**numbers, unlike=unlike)


# ---- the command line


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 refused or stopped by an error, 130 interrupted."""
    asked = _parser().parse_args(arguments)
    paths = [Path(os.path.abspath(os.path.expanduser(path))) for path in (asked.model, asked.folder, asked.output)]
    try:
        classifier, results = _predict(*paths)
    except (ValueError, OSError, MemoryError) as error:
        print(wrapped(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print("\n" + wrapped(str(interruption) or "Interrupted, before the first image."), file=sys.stderr)
        return 130
    print("\n".join(wrapped(line) for line in _summarise(classifier, results, asked.output)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.predict",
        description="Writes what a saved classifier says about images, one row for each file. The same command again "
        "goes on where an interrupted one stopped.",
    )
    parser.add_argument("model", metavar="MODEL", help="a classifier, such as runs/pets-ResNet50/chosen.keras")
    parser.add_argument("folder", metavar="FOLDER", help="a folder of images, one image, or an archive of images")
    parser.add_argument("-o", "--output", metavar="FILE", default="predictions.csv", help="default: predictions.csv")
    return parser


def _summarise(classifier: "_Classifier", results: "_Results", output: str) -> Iterator[str]:
    """Yields what a person should know, a line for each thing."""
    judged = classifier.familiarity is not None
    unlike = f", {results.unlike:,} of them unlike the training data" if judged else ""
    yield f"{results.images:,} image{'s' * (results.images != 1)} predicted{unlike}: {output}"
    if results.skipped:
        yield f"{results.skipped:,} file{'s' * (results.skipped != 1)} skipped: the column `problem` says why."
    if not judged:
        from helpers.training.familiarity import LEAST_IMAGES  # here: TensorFlow takes seconds, and now it is there

        yield (
            f"The column `unlike` is empty: the model's file does not say what its training images were like. Either "
            f"they were fewer than {LEAST_IMAGES}, too few to tell, or it was saved without them (`save_model` takes "
            f"them as `pixels` and `labels`)."
        )
    if names := [name for name in classifier.class_names if name.startswith(_FORMULA)]:
        yield (
            f"The class {names[0]!r} begins like a formula. It is written as it is: in a spreadsheet, import the "
            f"file's columns as text."
        )


# ---- the work


def _predict(model: Path, folder: Path, output: Path) -> tuple["_Classifier", "_Results"]:
    """Returns the classifier and what is counted in the results, which are then written: see `predict_folder`."""
    if not model.is_file():
        raise FileNotFoundError(f"Expected the file of a saved classifier. There is no file {model}.")
    if not os.path.exists(folder):
        raise FileNotFoundError(f"Expected a folder of images, or one image. There is no {folder}.")
    with _results(output, _digest(model, folder)) as results:
        total = sum(1 for _ in _files(folder, besides=results.own))  # counted, and not kept: there may be millions
        classifier = _Classifier.load(model)
        files = _files(folder, besides=results.own | results.done)
        with closing(_rows(classifier, files, total - len(results.done))) as lots:
            for rows in lots:
                results.append(rows)
        if not results.images:
            found = f"None of {results.skipped:,} can be read, for example {results.example}"
            found = found if results.skipped else "It holds no file, or hidden ones only."
            raise ValueError(f"Expected images in {folder}. {found}")
    return classifier, results


def _files(folder: Path, *, besides: set[str]) -> Iterator[tuple[str, str, str]]:
    return (file for file in list_files(folder) if file[1] != "stray file" and file[0] not in besides)


def _rows(classifier: "_Classifier", files: Iterator[tuple[str, str, str]], total: int) -> Iterator[list[tuple]]:
    """Yields the files' rows, in their order, as many at a time as pass the network together."""

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

    with closing(in_parallel(read, files, title="predicting", lot=4, total=total)) as images:
        while lot := list(itertools.islice(images, classifier.batch_size)):
            pixels = [image for _, image, _ in lot if image is not None]
            described = iter(classifier.describe(np.stack(pixels)) if pixels else ())
            yield [(path, *(_NOTHING if problem else next(described)), problem) for path, _, problem in lot]


_NOTHING = ("",) * (len(COLUMNS) - 2)


class _Classifier:
    """A saved classifier, and what it says about images in the columns between path and problem."""

    def __init__(self, model, settings: dict, familiarity):
        from helpers._keras import keras
        from helpers.backbones import features_tensor
        from helpers.backbones.graphs import free_name
        from helpers.training.activations import Inference

        self.class_names, self.familiarity = settings["class_names"], familiarity
        self.reading = {name: settings[name] for name in ("resize", "white")} | {"image_size": model.input_shape[1:3]}
        outputs = model.outputs[0]
        if familiarity is not None:  # both from one pass
            features = features_tensor(model)
            if features.shape[1:] != familiarity.centres.shape[1:]:
                raise ValueError(f"{model.name} gives other features than those by which its file knows its own.")
            name = free_name("outputs", model)
            outputs = keras.layers.Concatenate(dtype="float32", name=name)([outputs, features])
        self._infer = Inference(keras.Model(model.inputs[0], outputs, name=model.name))
        self.batch_size = self._infer.batch_size

    @classmethod
    def load(cls, path: Path) -> "_Classifier":
        """Returns the classifier in a file; only here is TensorFlow needed, which takes seconds to start."""
        from helpers.training import load_classifier, load_familiarity

        return cls(*load_classifier(path), load_familiarity(path))

    def describe(self, pixels: np.ndarray) -> list[tuple]:
        """Returns label, probability, runner_up, runner_up_probability and unlike ("" if unknown) of each image."""
        outputs, classes = self._infer(pixels), len(self.class_names)
        probabilities = outputs[:, :classes]
        unlike = [""] * len(outputs)
        if self.familiarity is not None:
            unlike = self.familiarity.is_unlike(outputs[:, classes:]).tolist()
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
        values = np.take_along_axis(probabilities, best, axis=1).astype("float64").round(6)
        return [
            (self.class_names[first], p, self.class_names[second], q, flag)
            for (first, second), (p, q), flag in zip(best.tolist(), values.tolist(), unlike, strict=True)
        ]


# ---- what is written


@contextmanager
def _results(output: Path, key: str) -> Iterator["_Results"]:
    """Yields the results, with what an interruption left; they get their name when the block has ended."""
    partial = output.with_name(f"{output.stem}.partial-{key}.csv")
    try:
        if output.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        output.parent.mkdir(parents=True, exist_ok=True)
        file = open(partial, "a+b", buffering=0)  # each row is the system's as soon as it is written
    except OSError as error:
        raise OSError(
            f"Expected a file to write the predictions to. {output} cannot be written: {error.strerror}. Name "
            f"another one (`output`, or -o)."
        ) from None
    with file:
        _lock(file, output)
        results = _Results(output, partial, file)
        try:
            yield results
            os.fsync(file.fileno())
            os.replace(partial, output)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Interrupted. {results.kept}") from None
        finally:
            if not results.images:
                partial.unlink(missing_ok=True)


def _lock(file: BinaryIO, output: Path) -> None:
    """Keeps a second process out; the system gives the lock back however this one ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(
            f"Another process is writing {output} at this moment. Wait for it, or name another file (-o)."
        ) from None
    except OSError:  # a network file system may have no locks
        pass


class _Results:
    """Rows in a file: those of an earlier, interrupted call, and those that are added."""

    def __init__(self, output: Path, partial: Path, file: BinaryIO):
        self.images = self.skipped = self.unlike = 0
        self.example = ""
        self.own = {stored_path(output), stored_path(partial)}
        self.done: set[str] = set()
        self._partial, self._file = partial, file
        if whole := _whole_rows(partial):
            os.truncate(partial, whole)
            earlier = read_texts(partial)
            self.done = set(earlier["path"])
            self._count(earlier.itertuples(index=False, name=None))
        else:
            os.truncate(partial, 0)
            self._write([COLUMNS])

    def append(self, rows: list[tuple]) -> None:
        """Adds rows to the file."""
        self._write(rows)
        self._count(rows)

    def _count(self, rows: Iterable[tuple]) -> None:
        for path, *_, unlike, problem in rows:
            self.images += not problem
            self.skipped += bool(problem)
            self.unlike += unlike in (True, "True")
            self.example = self.example or (problem and f"{path}: {problem}")

    @property
    def kept(self) -> str:
        """Where the rows so far are, and what to do with them, in words."""
        if not self.images:
            return "No image has been predicted yet."
        return f"{self.images:,} images are done and kept in {self._partial}: the same again goes on from there."

    def _write(self, rows: list[tuple]) -> None:
        text = io.StringIO(newline="")
        # All texts in quotes: with fewer, a name that holds nothing but a "\r" would end its row.
        csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows(rows)
        left = memoryview(text.getvalue().encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OSError(f"{self._partial} cannot be written: {error.strerror}. {self.kept}") from None


def _whole_rows(file: Path) -> int:
    """Returns how many bytes of a CSV file are whole rows: a power cut may have left half of one."""
    whole = position = quotes = 0
    with open(file, "rb") as lines:
        for line in lines:
            position += len(line)
            quotes += line.count(b'"')
            if line.endswith(b"\n") and quotes % 2 == 0:
                whole = position
    return whole


def _digest(model: Path, folder: Path) -> str:
    """Returns what tells the rows of a classifier and a folder from those of others."""
    with open(model, "rb") as file:
        content = hashlib.file_digest(file, "sha256").digest()
    return hashlib.sha256(content + os.fsencode(folder)).hexdigest()[:8]


if __name__ == "__main__":
    sys.exit(main())
