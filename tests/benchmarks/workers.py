"""Several workers on one study: is a trial done twice, and how long do they wait for the storage?

    python tests/benchmarks/workers.py [--workers 4] [--budget quick]

The embedded example's study. The workers are processes of this machine that begin together and share a journal file.
The share of the storage is what reading and writing trials took, waiting for locks included, of what the workers took
from the plan to the final.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from time import perf_counter

import helpers
from helpers.backbones import load_backbone
from helpers.data import check_images, find_images, open_data, split_images
from helpers.study import Experiment, Study


def work(storage: str, budget: str) -> dict:
    """Returns what this worker has done, and the table that it ends with."""
    checked, _ = check_images(find_images(open_data("digits")))
    experiment = Experiment(load_backbone("data/letters.keras"), split_images(checked), resize="crop")
    started = perf_counter()
    study = Study(experiment, storage=storage, name="study", budget=budget)
    final = study.final(study.probe(), study.race())
    seconds = perf_counter() - started
    table = final[["arm", "pair", "test_accuracy", "log_loss"]].to_csv()
    done = [repr(trial) for trial in study.trials.done]
    return {"done": done, "table": table, "storage": study.trials.seconds_in_storage, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--storage", help=argparse.SUPPRESS)  # is given to the workers
    options = parser.parse_args()
    if options.storage:
        print(json.dumps(work(options.storage, options.budget)))
        return
    tables = {}
    for workers in (1, options.workers):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--budget", options.budget, "--storage", f"{folder}/study.journal"]
            started = perf_counter()
            running = [
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=helpers.ROOT) for _ in range(workers)
            ]
            reports = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in running]
            took = perf_counter() - started
        done = [trial for report in reports for trial in report["done"]]
        share = sum(report["storage"] for report in reports) / sum(report["seconds"] for report in reports)
        tables[workers] = {report["table"] for report in reports}
        print(
            f"{workers} workers: {took:.0f} s, {len(done)} trials, {len(done) - len(set(done))} of them twice; the "
            f"storage took {100 * share:.2f} % of their time",
            flush=True,
        )
    same = len(set.union(*tables.values())) == 1
    print("all of them end with the same table" if same else "the tables DIFFER")


if __name__ == "__main__":
    main()
