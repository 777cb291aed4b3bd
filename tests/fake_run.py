"""A run's folder as the notebooks leave it, without executing them: for the tests of reports."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image
from PIL.PngImagePlugin import PngInfo

CLASSES = ["<script>alert(1)</script>", "a|b_c*d*", "plain"]

FIGURES = {
    "predictions": "a (97 %), right.",
    "mistakes": "One mistake.",
    "confusion": "8 of 9.",
    "differences": 'Differences "in" <words>.',
    "costs": "Costs in words.",
}


def verdict(**changes) -> dict:
    """Returns what `verdict.json` holds, in part."""
    arm = {"pairs": 6, "memory_mb": 1.25, "low": 0.85, "high": 0.95}
    frozen = {"cut": "conv4", "all_layers": False, "stage": "", "learning_rate": 0.0}
    frozen |= {"test_accuracy": 0.9, "seconds": 1.5, "trainable_weights": 650.0}
    tuned = {"cut": "head", "all_layers": True, "stage": "conv3", "learning_rate": 1e-3}
    tuned |= {"test_accuracy": 0.95, "seconds": 61.25, "trainable_weights": 361738.0}
    tuned |= {"difference": 0.05, "difference_low": 0.02, "difference_high": 0.08}
    comparison = {"difference": 0.05, "low": 0.02, "high": 0.08, "detectable": 0.04, "equivalent": False, "pairs": 6}
    found = {
        "verdict": "fine-tune",
        "chosen": "fine-tuned",
        "headline": "Fine-tune from conv3 on (all layers taken, learning rate 0.001): 5.0 points more accurate.",
        "explanation": "Of 100 test images, more are right. A training takes 61 s.",
        "paragraph": "Fine-tune from conv3 on. Of 100 test images, more are right. A training takes 61 s.",
        "arms": {"fine-tuned": arm | tuned, "frozen": arm | frozen},
        "comparison": comparison,
        "margin": 0.01,
        "stopped": "",
        "failed": [],
    }
    return found | changes


def environment(**changes) -> dict:
    """Returns one entry of `environment.json`."""
    found = {"since": "2026-11-24T11:15:02+00:00", "python": "3.11.9", "tensorflow": "2.21.0", "keras": "3.15.1"}
    return found | {"processor": "Some <fast> one", "cores": 2, "gpus": [], "commit": 40 * "a"} | changes


def executed(title: str, parameters: str, values: dict, *cells, **about):
    """Returns an executed notebook, as papermill leaves it."""
    head = new_code_cell(parameters, metadata={"tags": ["parameters"]}, execution_count=1)
    notebook = new_notebook(
        cells=[new_markdown_cell(f"# {title}\n\n## A step\n\n| a | b |\n| - | - |\n| 1 | 2 |"), head]
    )
    notebook.cells += [new_code_cell(source, outputs=list(outputs), execution_count=2) for source, outputs in cells]
    end = {"end_time": "2026-11-24T11:19:14+00:00", "duration": 184.1, "exception": None}
    notebook.metadata.papermill = {"parameters": values} | end | about
    return notebook


def write_figures(run: Path, *, size: tuple[int, int] = (4, 2), figures: dict[str, str] = FIGURES) -> None:
    """Writes grey pictures as `Run.figure` does, with their descriptions."""
    (run / "figures").mkdir(exist_ok=True)
    for name, words in figures.items():
        about = PngInfo()
        about.add_text("Description", words)
        Image.new("L", size, 128).save(run / "figures" / f"{name}.png", pnginfo=about)


def write_tables(run: Path, names: list[str]) -> None:
    """Writes what 05 finds out: one class is weak, one mistake is sure, a little noise costs much."""
    classes = pd.DataFrame({"class": names, "images": 30, "recall": 0.97, "recall_high": 1.0, "taken_for": names[1]})
    classes.loc[0, ["recall", "recall_high"]] = 0.5, 0.67
    classes.to_csv(run / "classes.csv", index=False)
    mistake = {"path": "pets/<7>.png", "label": names[0], "predicted": names[1], "probability": 0.996}
    pd.DataFrame([mistake, mistake | {"probability": 0.6}]).to_csv(run / "mistakes.csv", index=False)
    rows = [("frozen", "none", 0, 0.9), ("frozen", "noise", 1, 0.7), ("frozen", "blur", 1, 0.88)]
    columns = ["arm", "corruption", "severity", "accuracy"]
    pd.DataFrame(rows, columns=columns).to_csv(run / "corruptions.csv", index=False)


def write_run(run: Path, *, classes: int = 3) -> Path:
    """Returns the folder of a run that has gone through, in which every file is small."""
    run.mkdir(parents=True)
    names = CLASSES if classes == 3 else [f"class {number}" for number in range(classes)]
    rows = [(f"{name}/{part}.png", name, part) for name in names for part in ("train", "validation", "test")]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(run / "images.csv", index=False)
    problems = [("<b>.png", CLASSES[0], "", "error", "damaged", "left out", "It ends after 3 of 9 bytes.", "", "")]
    problems += [("c.png", "plain", "", "note", "animation", "kept", "Its first frame is used.", "", "")]
    columns = ["path", "label", "split", "severity", "problem", "action", "reason", "other", "group"]
    pd.DataFrame(problems, columns=columns).to_csv(run / "problems.csv", index=False)
    answer = verdict()
    metrics = {"study": answer["arms"], "answer": answer["paragraph"], "classes": names}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "verdict.json").write_text(json.dumps(answer))
    (run / "environment.json").write_text(json.dumps([environment()]))
    values = {"data": "my <photos>", "seed": 0, "rate": 0.01}
    (run / "parameters.yaml").write_text(yaml.safe_dump(values | {"backbone": "ResNet50", "weights": "imagenet"}))
    data = 'run_dir: str = "runs/x"  # where\ndata: str = "digits"  # a folder\nseed: int = 0  # any'
    load = executed("What is there?", data, {"data": "my <photos>"}, ("df", []))
    backbone = (
        'backbone: str = "ResNet50"  # a name\nweights: str = "imagenet"  # or a file\nrate: float = 1e-3  # of it'
    )
    study = executed("Freeze or fine-tune?", backbone, {"rate": 0.01}, ("study", []))
    nbformat.write(load, run / "01_load_data.ipynb")
    nbformat.write(study, run / "04_freeze_or_fine_tune.ipynb")
    write_figures(run)
    write_tables(run, names)
    return run
