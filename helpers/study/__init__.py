"""Freeze or fine-tune? Arms that race, a final over several splits, and a verdict that says how sure it is.

trials       what has to be done, what is done, and by whom, in Optuna's storage
experiment   the network and the images, and what each arm makes of them
plan         what a budget buys
study        race, final
verdict      the paired difference, its interval, and what follows
"""

from helpers.study.experiment import Experiment
from helpers.study.plan import BUDGETS, Plan, make_plan
from helpers.study.study import Study, candidate_cuts, correct_by_arm, paired, summarize
from helpers.study.trials import Trial, Trials
from helpers.study.verdict import accuracy_over_pairs, choose_arm, compare_pairs, decide, describe_verdict

__all__ = [
    "BUDGETS",
    "Experiment",
    "Plan",
    "Study",
    "Trial",
    "Trials",
    "accuracy_over_pairs",
    "candidate_cuts",
    "choose_arm",
    "compare_pairs",
    "correct_by_arm",
    "decide",
    "describe_verdict",
    "make_plan",
    "paired",
    "summarize",
]
