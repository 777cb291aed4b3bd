"""A classifier for elsewhere: as TensorFlow SavedModel, ONNX and LiteRT, each compared with Keras by its own runtime.

Every export takes what the classifier takes and gives what it gives, for any number of images at once:

    images          uint8 (batch, height, width, 3), RGB in 0..255, brought to the size by the classifier's rule
    probabilities   float32 (batch, classes)

Class names and rule travel within, as `classifier.json`: in the SavedModel's folder `assets.extra`, in the ONNX
file's metadata, and in a zip archive at the end of the LiteRT file, where TensorFlow Lite's own tools put such files.

From the command line: `python -m helpers.export MODEL -o FOLDER`.
"""

import argparse
import difflib
import importlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

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
from helpers.backbones.files import first_line
from helpers.training import load_settings

KINDS = ("savedmodel", "onnx", "litert")
"""What `export_model` knows."""

INSTALL = 'python -m pip install -c requirements.txt -e ".[export]"'
TOLERANCE = 1e-4
"""The largest difference in a probability from Keras' with which an export gets its name."""

_BAR = {"file": progress_file(), "leave": False}


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Has TensorFlow compute on the CPU, as the other runtimes do: a GPU may round products to 10 bits (TF32)."""
    import tensorflow

    with tensorflow.device("CPU:0"):
        yield


@_on_cpu()
def export_model(path: str | Path, folder: str | Path, *, kinds: Iterable[str] = KINDS) -> dict[str, Path]:
    """Returns the classifier's exports by kind: `chosen.savedmodel`, a folder, and the files `.onnx` and `.tflite`.

    Each is written under another name, loaded again by its own runtime and compared with Keras on images of noise. It
    gets its name, and takes the place of an older export, only if it gives the same probabilities. Random layers that
    do nothing in a prediction are left out.

    Args:
        path: of a `.keras` file that `helpers.training.save_model` wrote.
        folder: where the exports go, made if need be.
        kinds: some of `KINDS`, or none; a text as for `read_kinds`. All but "savedmodel" need the extra `export`.

    Raises:
        ValueError: no such kind; the file is not a whole classifier; a format cannot express one of its layers, or
            gives other probabilities. The other kinds are written all the same, and each that failed is named.
        ImportError: what a kind needs is not installed.
        OSError: there is no such file, or the folder cannot be written to.
    """
    formats = {kind: FORMATS[kind] for kind in read_kinds(kinds)}
    if not formats:
        return {}
    model, settings = _predicting(load_model(path)), load_settings(path)
    _hold_arrays(model)
    folder, stem, written, errors = resolve_path(folder), resolve_path(path).stem, {}, []
    with _partial_folder(folder) as partial, tqdm(formats.items(), desc="exporting", **_BAR) as bar:
        for kind, format in bar:
            bar.set_postfix_str(kind)
            file = partial / f"{stem}{format.suffix}"
            try:
                _import_all(format)
                _write(model, settings, format, file)
                written[kind] = _give_name(file, folder / file.name)
            except (ValueError, ImportError, OSError) as error:
                errors.append(error)
    if errors:
        kind = next((k for k in (ImportError, OSError) if all(isinstance(error, k) for error in errors)), ValueError)
        done = [f"Written: {', '.join(file.name for file in written.values())}."] if written else []
        raise kind("\n".join([*map(str, errors), *done]))
    return written


def read_kinds(exports: str | Iterable[str] | None) -> list[str]:
    """Returns some of `KINDS`, which a text separates by commas; "" and None are for none.

    Raises:
        ValueError: one that there is not.
    """
    kinds = exports.split(",") if isinstance(exports, str) else exports or []
    kinds = [kind.strip() for kind in kinds if kind.strip() not in ("", "None")]
    for kind in kinds:
        if kind not in FORMATS:
            nearest = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0)[0]
            raise ValueError(
                f"Expected `exports` to be some of {', '.join(KINDS)}, separated by commas. Received {kind!r}. "
                f"Did you mean {nearest}?"
            )
    return kinds


@_on_cpu()
def load_export(path: str | Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """Returns an export as a function from images to probabilities, and its settings as `load_settings` does.

    The function is computed by the export's own runtime, on the CPU: TensorFlow, ONNX Runtime or LiteRT. It takes
    uint8 (batch, height, width, 3), for any batch, and returns float32 (batch, classes).

    Args:
        path: of an export: the kind is told by the end of its name.

    Raises:
        ValueError: the name has another end; or the file is damaged, or not an export of `export_model`.
        ImportError: the runtime is not installed.
        FileNotFoundError: no such file.
    """
    path = resolve_path(path)
    format = FORMATS[_kind_of(path)]
    if not path.exists():
        raise FileNotFoundError(f"Expected an export. There is no {path}: `export_model` makes it.")
    _import_all(format)
    try:
        with silent_stderr():
            return format.load(path)
    except Exception as error:  # each runtime has errors of its own
        raise ValueError(
            f"{format.title} cannot load {path}: {first_line(error)} It is damaged, or not an export of "
            f"`export_model`. Export the classifier again."
        ) from None


@_on_cpu()
def compare_exports(path: str | Path, exports: Iterable[str | Path], images: np.ndarray) -> pd.DataFrame:
    """Returns how far each export agrees with Keras on these images, and how fast it is, a row for each; Keras first.

    Args:
        path: of the `.keras` file.
        exports: the files made of it; of a dict, such as `export_model` returns, its values.
        images: uint8 (images, height, width, 3) of the classifier's size, in memory or stored (`load_pixels`).

    Returns:
        Columns kind, file (its name), megabytes, largest_difference (of any probability, from Keras' for the same
        image), same_class (the share of images with the same most probable class, 0..1), images, and
        seconds_per_image (in batches of 32, on all cores of this machine's CPU).

    Raises:
        ValueError: images of another size or type; otherwise as `load_export`.
    """
    path = resolve_path(path)
    exports = [*(exports.values() if isinstance(exports, dict) else exports)]
    model = load_model(path)
    if (images.dtype, images.shape[1:]) != ("uint8", model.input_shape[1:]) or not len(images):
        raise ValueError(
            f"Expected images as uint8 (images, {', '.join(map(str, model.input_shape[1:]))}), as {path.name} takes "
            f"them, at least one. Received {images.dtype} {images.shape}."
        )
    runtimes = {path: ("keras", _keras_runtime(model))}
    runtimes |= {file: (_kind_of(file), load_export(file)[0]) for file in map(resolve_path, exports)}
    rows, expected = [], None
    with tqdm(total=len(runtimes) * len(images), desc="comparing exports", unit="image", **_BAR) as bar:
        for file, (kind, predict) in runtimes.items():
            bar.set_postfix_str(kind)
            probabilities, seconds = _time(predict, images, bar)
            expected = probabilities if expected is None else expected
            rows.append(
                {
                    "kind": kind,
                    "file": file.name,
                    "megabytes": _bytes(file) / 1e6,
                    "largest_difference": float(np.abs(probabilities - expected).max()),
                    "same_class": float((probabilities.argmax(axis=1) == expected.argmax(axis=1)).mean()),
                    "images": len(images),
                    "seconds_per_image": seconds / len(images),
                }
            )
    return pd.DataFrame(rows)


# ---- the formats


def _load_savedmodel(path: Path):
    import tensorflow

    settings = json.loads((path / "assets.extra" / "classifier.json").read_text(encoding="utf-8"))
    model = tensorflow.saved_model.load(str(path))
    return _on_cpu()(lambda images: model.serve(images)["probabilities"].numpy()), settings


def _add_to_savedmodel(path: Path, settings: str) -> None:
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / "classifier.json").write_text(settings, encoding="utf-8")


def _load_onnx(path: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    settings = json.loads(session.get_modelmeta().custom_metadata_map["classifier.json"])
    return lambda images: session.run(["probabilities"], {"images": images})[0], settings


def _add_to_onnx(path: Path, settings: str) -> None:
    import onnx

    model = onnx.load(path)
    model.metadata_props.add(key="classifier.json", value=settings)
    onnx.save(model, path)


def _prepare_onnx() -> dict:
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        """GELU's 1 - erf, which tf2onnx 1.17 does not know."""

        @classmethod
        def version_13(cls, graph, node, **kwargs):
            erf = graph.make_node("Erf", node.input, dtypes=[graph.get_dtype(node.output[0])])
            one = graph.make_const(f"{node.name}/one", np.ones((), "float32"))
            graph.replace_all_inputs(node.output[0], graph.make_node("Sub", [one.output[0], erf.output[0]]).output[0])
            graph.remove_node(node.name)

    return {}


def _load_litert(path: Path):
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(path) as archive:
        settings = json.loads(archive.read("classifier.json"))
    run = Interpreter(str(path), num_threads=os.cpu_count()).get_signature_runner()
    return lambda images: run(images=images)["probabilities"], settings


def _add_to_litert(path: Path, settings: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("classifier.json", settings)


def _prepare_litert() -> dict:
    import tensorflow

    # Keras would also allow operations of TensorFlow, and LiteRT's runtime has none of them.
    return {"target_spec": {"supported_ops": [tensorflow.lite.OpsSet.TFLITE_BUILTINS]}}


@dataclass(frozen=True)
class Format:
    """One format: what it is called, and what writes and loads it.

    Attributes:
        title: for messages.
        suffix: of the file's name.
        keras_name: of the format in `keras.Model.export`.
        packages: to be imported, of the extra `export`.
        load: from a file to a function from images to probabilities, and the settings.
        add_settings: into a file that was just written, as JSON.
        prepare: the converter; returns options of `keras.Model.export`.
    """

    title: str
    suffix: str
    keras_name: str
    packages: tuple[str, ...]
    load: Callable
    add_settings: Callable
    prepare: Callable = dict


FORMATS = {
    "savedmodel": Format(
        "TensorFlow SavedModel", ".savedmodel", "tf_saved_model", (), _load_savedmodel, _add_to_savedmodel
    ),
    "onnx": Format("ONNX", ".onnx", "onnx", ("tf2onnx", "onnxruntime"), _load_onnx, _add_to_onnx, _prepare_onnx),
    "litert": Format(
        "LiteRT", ".tflite", "litert", ("ai_edge_litert.interpreter",), _load_litert, _add_to_litert, _prepare_litert
    ),
}


def _kind_of(path: Path) -> str:
    for kind, format in FORMATS.items():
        if path.suffix == format.suffix:
            return kind
    ends = ", ".join(format.suffix for format in FORMATS.values())
    raise ValueError(f"Expected an export, whose name ends in one of {ends}. Received {path.name}.")


def _import_all(format: Format) -> None:
    for package in format.packages:
        try:
            with silent_stderr():
                importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"{format.title} needs {package.partition('.')[0]}, which cannot be imported ({first_line(error)}) "
                f"Install the extra `export`: {INSTALL}. Without it, choose the kind savedmodel."
            ) from None


# ---- writing


def _write(model: keras.Model, settings: dict, format: Format, file: Path) -> None:
    """Writes one export, and loads it again.

    Raises:
        ValueError: the format cannot express a layer, or gives other probabilities.
    """
    named = keras.Model(model.inputs[0], {"probabilities": model.outputs[0]}, name=model.name)
    signature = [keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="uint8", name="images")]
    try:
        with _quiet():
            named.export(file, format=format.keras_name, verbose=False, input_signature=signature, **format.prepare())
            format.add_settings(file, json.dumps(settings, ensure_ascii=False))
            predict, _ = format.load(file)
            # Two numbers of images: some layers are exported for the one that they were first called with.
            noise = np.random.default_rng(0).integers(0, 256, (3, *model.input_shape[1:]), dtype="uint8")
            probabilities = np.concatenate([predict(noise[:1]), predict(noise[1:])])
    except OSError:
        raise
    except Exception as error:  # each converter and runtime has errors of its own
        other = "another kind" if format is FORMATS["savedmodel"] else "the kind savedmodel, which knows all layers"
        raise ValueError(
            f"{file.name} was not written: {format.title} cannot express {_reason(model, error)} Choose {other}, or "
            f"build the network without that layer."
        ) from error
    difference = np.abs(probabilities - _keras_runtime(model)(noise)).max()
    if not difference <= TOLERANCE:  # NaN is not
        raise ValueError(
            f"{file.name} was not written: {format.title} gives other probabilities than Keras, by up to "
            f"{difference:.2g}.{_half_precision(model.layers)} Choose another kind."
        )


def _predicting(model: keras.Model) -> keras.Model:
    """Returns the model without the random layers that do nothing in a prediction: dropout, noise, augmentation.

    Keras applies augmentation also in what it exports. A layer counts if it has a random generator and gives noise
    back.
    """

    def plain(layer):
        if not isinstance(layer, keras.Layer) or layer.weights or not layer.variables:
            return layer
        dtype = keras.backend.standardize_dtype(layer.input.dtype)
        noise = np.random.default_rng(0).integers(0, 256, (2, *layer.input.shape[1:])).astype(dtype)
        same = np.array_equal(keras.ops.convert_to_numpy(layer(noise, training=False)), noise)
        # Where it also changes the type, a product with 1 does so, too.
        return keras.layers.Rescaling(1.0, name=layer.name, dtype=layer.dtype_policy) if same else layer

    return keras.models.clone_model(model, clone_function=plain)


def _hold_arrays(model: keras.Model) -> None:
    """Turns the tensors that layers hold as attributes, besides their weights, into arrays.

    tf2onnx takes such a constant for an input of the network: the numbers of positions in KerasHub's Vision
    Transformers, for example.
    """
    import tensorflow

    for layer in model._flatten_layers():
        held = {name: value for name, value in vars(layer).items() if isinstance(value, tensorflow.Tensor)}
        for name, value in held.items():
            setattr(layer, name, value.numpy())


def _reason(model: keras.Model, error: Exception) -> str:
    """Returns what a converter or runtime cannot do: the layer, found by its place in TensorFlow's graph, and why."""
    line = first_line(error)
    # Where a layer's name is taken in the graph, TensorFlow adds a number: conv2d_1 may be conv2d or conv2d_1.
    named = [layer for layer in model.layers if re.search(rf"/{re.escape(layer.name)}(_1)?/", line)]
    layers = " or ".join(f"{layer.name} ({type(layer).__name__})" for layer in named)
    operation = re.search(r"No Op registered for (\w+)|'tf\.(\w+)' op", line)
    why = f"it has no operation {operation[1] or operation[2]}." if operation else line
    why += _half_precision(named or model.layers)
    if dangling := re.search(r"Required inputs \(\['([^']+)'", line):
        why = f"its constant {dangling[1].rpartition(':')[0]} was taken for an input, and has no value."
    return f"{'the layer ' + layers if layers else 'a layer of this network'}: {why}"


def _half_precision(layers: Iterable[keras.Layer]) -> str:
    """Returns a sentence on what computes in half precision, which runtimes often lack or round in another way."""
    policies = {layer.dtype_policy.name for layer in layers if layer.compute_dtype in ("float16", "bfloat16")}
    if not policies:
        return ""
    return (
        f" The cause is its precision, {' and '.join(sorted(policies))}: build the network anew under the policy "
        f"float32, give it the weights (`set_weights`), save it, and use that file."
    )


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder inside `folder`, to be written in; it is gone in the end.

    Raises:
        OSError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(prefix=".partial-", dir=folder)
    except OSError as error:
        raise OSError(
            f"Nothing can be written to the folder {folder}: {error.strerror}. Choose another `folder`."
        ) from None
    with partial as name:
        yield Path(name)


def _give_name(partial: Path, path: Path) -> Path:
    """Returns `path`, which now is what was written; a folder of that name goes first: no rename replaces it."""
    older = partial.with_name("older")
    if partial.is_dir() and path.is_dir():
        os.replace(path, older)
    try:
        os.replace(partial, path)
    except OSError:
        if older.exists():
            os.replace(older, path)
        raise
    shutil.rmtree(older, ignore_errors=True)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the converters' messages out of the notebook: what counts is whether the export gives the same."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with silent_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---- comparing


def _keras_runtime(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow

    signature = [tensorflow.TensorSpec((None, *model.input_shape[1:]), "uint8")]
    forward = tensorflow.function(lambda images: model(images, training=False), input_signature=signature)
    return lambda images: forward(images).numpy()


def _time(predict: Callable, images: np.ndarray, bar: tqdm) -> tuple[np.ndarray, float]:
    """Returns the probabilities, and the seconds that they took, without a first batch that only warms up."""
    batches = [slice(start, start + 32) for start in range(0, len(images), 32)]
    predict(np.asarray(images[batches[0]]))
    probabilities, seconds = [], 0.0
    for rows in batches:
        batch = np.asarray(images[rows])
        started = perf_counter()
        probabilities.append(predict(batch))
        seconds += perf_counter() - started
        bar.update(len(batch))
    return np.concatenate(probabilities), seconds


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


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
