"""Freeze or fine-tune? Arms that race, a final over several splits, and a verdict that says how sure it is.

trials       what has to be done, what is done, and by whom, in Optuna's storage
experiment   the network and the images, and what each arm makes of them
plan         what a budget buys
study        race, final
verdict      the paired difference, its interval, and what follows
halves       images by class, and the classes divided into halves
transferability  what the layers that learned one half are worth for the other half
transfer_results  what that experiment's results say
"""

from helpers.study.experiment import Experiment
from helpers.study.halves import Halves, LabelledImages, halve_classes, open_classes
from helpers.study.plan import BUDGETS, Plan, make_plan
from helpers.study.study import Study, candidate_cuts, correct_by_arm, paired, summarize
from helpers.study.transfer_results import (
    compare_arms,
    compare_costs,
    compare_runs,
    describe_transfer,
    interval_over_splits,
    published_results,
    summarize_transfer,
)
from helpers.study.transferability import LONGER, TRANSFER_ARMS, Transferability, build_convnet, run_transfer
from helpers.study.trials import Trial, Trials
from helpers.study.verdict import accuracy_over_pairs, choose_arm, compare_pairs, decide, describe_verdict

__all__ = [
    "BUDGETS",
    "LONGER",
    "TRANSFER_ARMS",
    "Experiment",
    "Halves",
    "LabelledImages",
    "Plan",
    "Study",
    "Transferability",
    "Trial",
    "Trials",
    "accuracy_over_pairs",
    "build_convnet",
    "candidate_cuts",
    "choose_arm",
    "compare_arms",
    "compare_costs",
    "compare_pairs",
    "compare_runs",
    "correct_by_arm",
    "decide",
    "describe_transfer",
    "describe_verdict",
    "halve_classes",
    "interval_over_splits",
    "make_plan",
    "open_classes",
    "paired",
    "published_results",
    "run_transfer",
    "summarize",
    "summarize_transfer",
]
