"""A classifier for elsewhere: as TensorFlow SavedModel, ONNX and LiteRT, each compared with Keras by its own runtime.

Every export takes `images`, uint8 (batch, height, width, 3), RGB, any number at once, brought to the size by the
classifier's rule, and gives `probabilities`, float32 (batch, classes). Class names and rule travel within, as
`classifier.json`: in the SavedModel's folder `assets.extra`, in the ONNX file's metadata, and in a zip archive at the
end of the LiteRT file, where TensorFlow Lite's own tools put such files.

From the command line: `python -m helpers.export MODEL -o FOLDER`.
"""

import argparse
import difflib
import importlib
import json
import logging
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from helpers import progress_file, resolve_path, silent_stderr, wrapped

try:
    from helpers.backbones import keras, load_model
except ValueError as error:  # another backend was asked for
    if __name__ == "__main__":
        sys.exit(wrapped(str(error)))
    raise
import tensorflow

from helpers.backbones.graphs import all_layers
from helpers.backbones.loading import first_line
from helpers.training import load_settings

TOLERANCE = 1e-4
"""The largest difference in a probability from Keras' with which an export gets its name."""


@contextmanager
def _on_cpu():
    """Has TensorFlow compute on the CPU, as the other runtimes do: a GPU may round products to 10 bits (TF32)."""
    with tensorflow.device("CPU:0"):
        yield


class Format(NamedTuple):
    """What people and Keras call it, how its files' names end, and what it needs."""

    title: str
    keras_name: str
    suffix: str
    packages: tuple[str, ...] = ()


FORMATS = {
    "savedmodel": Format("TensorFlow SavedModel", "tf_saved_model", ".savedmodel"),
    "onnx": Format("ONNX", "onnx", ".onnx", ("tf2onnx", "onnx", "onnxruntime")),
    "litert": Format("LiteRT", "litert", ".tflite", ("ai_edge_litert.interpreter",)),
}
KINDS = tuple(FORMATS)
_KIND_OF = {format.suffix: kind for kind, format in FORMATS.items()}


def read_kinds(exports: str | Iterable[str] | None) -> list[str]:
    """Returns some of `KINDS`, which a text separates by commas; "" and None are for none. Else a ValueError."""
    kinds = exports.split(",") if isinstance(exports, str) else exports or []
    kinds = [kind.strip() for kind in kinds if kind.strip() not in ("", "None")]
    for kind in kinds:
        if kind not in FORMATS:
            raise ValueError(
                f"Expected `exports` to be some of {', '.join(KINDS)}, separated by commas. Received {kind!r}. "
                f"Did you mean {difflib.get_close_matches(kind, KINDS, n=1, cutoff=0)[0]}?"
            )
    return kinds


def _import_packages(kind: str) -> None:
    for package in FORMATS[kind].packages:
        try:
            with silent_stderr():
                importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"{FORMATS[kind].title} needs the package {package.partition('.')[0]}, which cannot be imported: "
                f'{first_line(error)} To install it, run python -m pip install -c requirements.txt -e ".[export]"'
            ) from None


# ---- exporting


@_on_cpu()
def export_model(path: str | Path, folder: str | Path, *, kinds: str | Iterable[str] = KINDS) -> dict[str, Path]:
    """Returns the classifier's exports by kind: `chosen.savedmodel`, a folder, and the files `.onnx` and `.tflite`.

    Each is loaded again by its own runtime and compared with Keras on noise. Only if it gives the same probabilities
    it gets its name, and replaces an older export. If a kind fails, the others are written all the same.

    Args:
        path: of a `.keras` file that `helpers.training.save_model` wrote.
        folder: where the exports go, made if need be.
        kinds: some of `KINDS`, or none; see `read_kinds`. All but "savedmodel" need the extra `export`: ImportError.

    Raises:
        ValueError: no such kind; no whole classifier; a format cannot express a layer or gives other probabilities.
    """
    kinds = read_kinds(kinds)
    if not kinds:
        return {}
    model, settings = load_model(path), load_settings(path)
    for layer in all_layers(model):  # tensors that a layer (of KerasHub) holds besides weights: inputs, to tf2onnx
        for name, value in list(vars(layer).items()):
            if isinstance(value, tensorflow.Tensor):
                setattr(layer, name, value.numpy())
    folder, stem, written, errors = resolve_path(folder), resolve_path(path).stem, {}, []
    folder.mkdir(parents=True, exist_ok=True)
    for kind in tqdm(kinds, desc="exporting", file=progress_file(), leave=False):
        name = f"{stem}{FORMATS[kind].suffix}"
        try:
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
                _import_packages(kind)
                _write(model, settings, kind, Path(partial, name))
                if (folder / name).is_dir():  # no rename replaces a folder
                    os.replace(folder / name, Path(partial, "older"))
                written[kind] = Path(partial, name).replace(folder / name)
        except (ValueError, ImportError, OSError) as error:
            errors.append(error)
    if errors:
        done = f"\nWritten: {', '.join(file.name for file in written.values())}." if written else ""
        raise type(errors[0])("\n".join(map(str, errors)) + done)
    return written


def _write(model: keras.Model, settings: dict, kind: str, file: Path) -> None:
    """Writes one export, loads it again, and compares it with Keras."""
    title, keras_name, *_ = FORMATS[kind]
    inputs = keras.Input(model.input_shape[1:], dtype=model.inputs[0].dtype)
    # said here: Keras would apply dropout, noise and augmentation in what it exports
    named = keras.Model(inputs, {"probabilities": model(inputs, training=False)}, name=model.name)
    signature = [keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="uint8", name="images")]
    noise = np.random.default_rng(0).integers(0, 256, (3, *model.input_shape[1:]), dtype="uint8")
    options = {}
    if kind == "onnx":
        _teach_erfc()
    if kind == "litert":  # Keras would also allow operations of TensorFlow, and LiteRT's runtime has none of them
        options = {"target_spec": {"supported_ops": [tensorflow.lite.OpsSet.TFLITE_BUILTINS]}}
    logging.disable(logging.ERROR)  # converters talk much: what counts is whether the export gives the same
    try:
        with silent_stderr(), warnings.catch_warnings(action="ignore"):
            named.export(file, format=keras_name, verbose=False, input_signature=signature, **options)
            _add_settings(kind, file, json.dumps(settings, ensure_ascii=False))
            predict, _ = _load(kind, file)
            # two numbers of images: some layers are exported for the one that they were first called with
            probabilities = np.concatenate([predict(noise[:1]), predict(noise[1:])])
    except OSError:
        raise
    except Exception as error:  # each converter and runtime has errors of its own
        line = first_line(error)
        layers = [
            f"{layer.name} ({type(layer).__name__}, {layer.dtype_policy.name})"
            for layer in model.layers
            if f"/{layer.name}/" in line or f"/{layer.name}_1/" in line  # TensorFlow adds a number to a taken name
        ]
        raise ValueError(
            f"{file.name} was not written: {title} cannot express {' or '.join(layers) or 'this network'}: {line} "
            f"Choose another kind."
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    difference = np.abs(probabilities - _keras_runtime(model)(noise)).max()
    if not difference <= TOLERANCE:  # NaN is not
        raise ValueError(
            f"{file.name} was not written: {title} gives other probabilities than Keras, by up to {difference:.2g}. "
            f"Choose another kind."
        )


def _add_settings(kind: str, file: Path, settings: str) -> None:
    """Puts what a program needs besides the model into an export."""
    if kind == "savedmodel":
        (file / "assets.extra").mkdir()
        (file / "assets.extra" / "classifier.json").write_text(settings, encoding="utf-8")
    elif kind == "onnx":
        import onnx

        model = onnx.load(file)
        model.metadata_props.add(key="classifier.json", value=settings)
        onnx.save(model, file)
    else:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("classifier.json", settings)


def _load(kind: str, file: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """Returns an export as a function from images to probabilities, and its settings."""
    if kind == "savedmodel":
        settings = (file / "assets.extra" / "classifier.json").read_text(encoding="utf-8")
        model = tensorflow.saved_model.load(str(file))
        return _on_cpu()(lambda images: model.serve(images)["probabilities"].numpy()), json.loads(settings)
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        settings = session.get_modelmeta().custom_metadata_map["classifier.json"]
        return lambda images: session.run(["probabilities"], {"images": images})[0], json.loads(settings)
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(file) as archive:
        settings = archive.read("classifier.json")
    run = Interpreter(str(file), num_threads=os.cpu_count()).get_signature_runner()
    return lambda images: run(images=images)["probabilities"], json.loads(settings)


def _teach_erfc() -> None:
    """Has tf2onnx 1.17 know GELU's 1 - erf."""
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_13(cls, graph, node, **kwargs):
            erf = graph.make_node("Erf", node.input, dtypes=[graph.get_dtype(node.output[0])])
            one = graph.make_const(f"{node.name}/one", np.ones((), "float32"))
            difference = graph.make_node("Sub", [one.output[0], erf.output[0]])
            graph.replace_all_inputs(node.output[0], difference.output[0])
            graph.remove_node(node.name)


# ---- comparing


@_on_cpu()
def load_export(path: str | Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """Returns an export as a function from images to probabilities, on the CPU, and its settings (`load_settings`).

    Raises a ValueError for a file that is damaged or not one of `export_model`, and an ImportError without runtime.
    """
    path = resolve_path(path)
    if path.suffix not in _KIND_OF:
        raise ValueError(f"Expected an export, whose name ends in {', '.join(_KIND_OF)}. Received {path.name}.")
    kind = _KIND_OF[path.suffix]
    _import_packages(kind)
    try:
        with silent_stderr():
            return _load(kind, path)
    except Exception as error:  # each runtime has errors of its own
        raise ValueError(f"{FORMATS[kind].title} cannot load {path}: {first_line(error)} Export it again.") from None


@_on_cpu()
def compare_exports(path: str | Path, exports: Iterable[str | Path], images: np.ndarray) -> pd.DataFrame:
    """Returns how far each export agrees with Keras on these images, and how fast it is, a row for each; Keras first.

    Args:
        path: of the `.keras` file.
        exports: the files made of it; of a dict, such as `export_model` returns, its values.
        images: uint8 (images, height, width, 3) of the classifier's size, in memory or stored (`load_pixels`).

    Returns:
        Columns kind, file, megabytes, largest_difference (of any probability, from Keras'), same_class (share of the
        images with the same most probable class), images, and seconds_per_image (in batches of 32, on the CPU).
    """
    path = resolve_path(path)
    runtimes = {path: _keras_runtime(load_model(path))}
    for file in map(resolve_path, exports.values() if isinstance(exports, dict) else exports):
        runtimes[file] = load_export(file)[0]
    rows, expected = [], None
    for file, predict in tqdm(runtimes.items(), desc="comparing exports", file=progress_file(), leave=False):
        probabilities, seconds = _time(predict, images)
        expected = probabilities if expected is None else expected
        row = {"kind": _KIND_OF.get(file.suffix, "keras"), "file": file.name, "megabytes": _bytes(file) / 1e6}
        row["largest_difference"] = float(np.abs(probabilities - expected).max())
        row["same_class"] = float((probabilities.argmax(axis=1) == expected.argmax(axis=1)).mean())
        rows.append(row | {"images": len(images), "seconds_per_image": seconds / len(images)})
    return pd.DataFrame(rows)


def _keras_runtime(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    signature = [tensorflow.TensorSpec((None, *model.input_shape[1:]), "uint8")]
    forward = tensorflow.function(lambda images: model(images, training=False), input_signature=signature)
    return lambda images: forward(images).numpy()


def _time(predict: Callable, images: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the probabilities, and the seconds that they took, without a first batch that only warms up."""
    predict(np.asarray(images[:32]))
    probabilities, seconds = [], 0.0
    for start in range(0, len(images), 32):
        batch = np.asarray(images[start : start + 32])
        started = perf_counter()
        probabilities.append(predict(batch))
        seconds += perf_counter() - started
    return np.concatenate(probabilities), seconds


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


# ---- the command line


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 refused; prints the files, or why there are none."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.export",
        description="Exports a classifier (chosen.keras of a run, say), each kind checked against Keras.",
    )
    parser.add_argument("model", help="the .keras file")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where the exports go")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas (default: %(default)s)")
    asked = parser.parse_args(arguments)
    model, folder = (Path(given).expanduser().absolute() for given in (asked.model, asked.output))
    try:
        written = export_model(model, folder, kinds=asked.kinds)
    except (ValueError, ImportError, OSError) as error:
        print(wrapped(str(error)), file=sys.stderr)
        return 2
    for file in written.values():
        print(f"{os.path.relpath(file)}  {_bytes(file) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
