"""What a trained model gets right and wrong, how sure one can be of it, and why.

intervals     how sure one can be of an accuracy, a difference, a mean
metrics       accuracy, two models on the same images, the arms side by side
classes       class by class: what is recognised, what is taken for what, the surest mistakes, examples to look at
reliability   whether it is right as often as it says, and temperature scaling
grad_cam      where in an image the network sees its class
corruptions   how the arms fare on changed images: graded corruptions, or a folder of the user's
"""

from helpers.evaluation.classes import choose_examples, class_table, confusion_table, find_mistakes
from helpers.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    compare_shift,
    corrupt,
    corruption_table,
    shifted_table,
    worst_corruptions,
)
from helpers.evaluation.grad_cam import cam_stages, grad_cam
from helpers.evaluation.intervals import accuracy_interval, compare
from helpers.evaluation.metrics import ARMS, describe_comparison, evaluate, is_correct, results_table
from helpers.evaluation.reliability import calibration_error, calibration_table, reliability_table, temper

__all__ = [
    "ARMS",
    "CORRUPTIONS",
    "SEVERITIES",
    "accuracy_interval",
    "calibration_error",
    "calibration_table",
    "cam_stages",
    "choose_examples",
    "class_table",
    "compare",
    "compare_shift",
    "confusion_table",
    "corrupt",
    "corruption_table",
    "describe_comparison",
    "evaluate",
    "find_mistakes",
    "grad_cam",
    "is_correct",
    "reliability_table",
    "results_table",
    "shifted_table",
    "temper",
    "worst_corruptions",
]
