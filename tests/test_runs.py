"""The runs side by side: what is half-finished, damaged or no run at all is a row with a note, never an error."""

import json
import os

import nbformat
import numpy as np
import pytest
from fake_run import environment, executed, verdict, write_run
from nbformat.v4 import new_output

from helpers.runs import COLUMNS, describe_runs, list_runs, main


def rows(folder) -> dict[str, dict]:
    return {row["name"]: row for row in list_runs(folder).to_dict("records")}


def test_a_run_has_a_row_the_newest_first_and_hidden_folders_have_none(tmp_path):
    write_run(tmp_path / "pets")
    row = rows(tmp_path)["pets"]
    assert row["data"] == "my <photos>" and row["backbone"] == "ResNet50" and row["verdict"] == "fine-tune"
    assert [row[name] for name in ("accuracy", "low", "high", "seconds")] == [0.95, 0.85, 0.95, 61.25]
    assert str(row["date"]) == "2026-11-24 11:15:02+00:00" and row["note"] == ""
    for name, since in (("old", "2025-01-01T00:00:00+00:00"), ("older", "2025-01-01T00:00:00+01:00")):
        (write_run(tmp_path / name) / "environment.json").write_text(json.dumps([environment(since=since)]))
    (tmp_path / ".pixels").mkdir()
    (tmp_path / "a file").touch()
    assert list_runs(tmp_path)["name"].tolist() == ["pets", "old", "older"]


def test_what_is_not_whole_has_a_note(tmp_path):
    stopped, early, failed = (write_run(tmp_path / name) for name in ("stopped", "early", "failed"))
    (stopped / "verdict.json").write_text(json.dumps(verdict(stopped="the race was interrupted")))
    (early / "verdict.json").unlink()
    (failed / "verdict.json").unlink()
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    nbformat.write(executed("How?", "", {}, ("1/0", [error]), exception=True), failed / "02_transfer_learning.ipynb")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "networks.jsonl").touch()
    found = rows(tmp_path)
    assert {name: row["note"] for name, row in found.items()} == {
        "compared": "A comparison of networks: make compare.",
        "stopped": "The study is not complete: the race was interrupted.",
        "early": "No verdict yet: 04_freeze_or_fine_tune makes it.",
        "failed": "02_transfer_learning did not finish.",
        "photos": "It is no run.",
    }
    assert found["early"]["verdict"] == "" and np.isnan(found["early"]["accuracy"])


WRONG = ["", "{", "[1]", "null", "3", "\x00\xff", '[{"since": "yesterday"}]', "[[]]"]
WRONG += ['{"verdict": {}, "arms": 3, "chosen": "x"}', '{"arms": {"x": []}, "chosen": "x"}']
WRONG += ['{"arms": {"x": {"test_accuracy": "high"}}, "chosen": "x"}']


@pytest.mark.parametrize("content", WRONG)
@pytest.mark.parametrize("name", ["verdict.json", "environment.json", "parameters.yaml", "01_load_data.ipynb"])
def test_no_content_is_an_error(tmp_path, name, content):
    run = write_run(tmp_path / "x")
    (run / "verdict.json").unlink()  # so that the notebooks are looked at, too
    (run / name).write_bytes(content.encode("latin1"))
    (row,) = rows(tmp_path).values()
    assert row["note"] and describe_runs(list_runs(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_has_a_note(tmp_path):
    (write_run(tmp_path / "x") / "verdict.json").chmod(0)
    assert rows(tmp_path)["x"]["note"].startswith("verdict.json cannot be read.")


def test_the_command_prints_them(root, capsys):
    assert list_runs().empty and list(list_runs(root / "nowhere")) == list(COLUMNS)
    main([])
    assert "make run makes one" in capsys.readouterr().out
    write_run(root / "runs" / "pets")
    (root / "runs" / "photos").mkdir()
    main([])
    printed = capsys.readouterr().out
    assert "0.950 (0.850 to 0.950)" in printed and "2026-11-24" in printed and "61.2" in printed
    assert printed.endswith("\n\nphotos: It is no run.\n") and "nan" not in printed.lower()
