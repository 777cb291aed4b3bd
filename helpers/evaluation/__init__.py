"""What a trained model gets right and wrong, how sure one can be of it, and why.

intervals     how sure one can be of an accuracy, a difference, a mean
metrics       accuracy, the arms side by side, classes and mistakes, calibration and temperature scaling
grad_cam      where in an image the network sees its class
corruptions   accuracy of the arms on changed images: graded corruptions, or a folder of the user's
"""

from helpers.evaluation.corruptions import compare_shift, corruption_table, shifted_table, worst_corruptions
from helpers.evaluation.grad_cam import locate_evidence
from helpers.evaluation.metrics import (
    calibration_table,
    choose_examples,
    class_table,
    compare_networks,
    confusion_table,
    evaluate,
    find_mistakes,
    reliability_table,
    results_table,
)

__all__ = [
    "calibration_table",
    "choose_examples",
    "class_table",
    "compare_networks",
    "compare_shift",
    "confusion_table",
    "corruption_table",
    "evaluate",
    "find_mistakes",
    "locate_evidence",
    "reliability_table",
    "results_table",
    "shifted_table",
    "worst_corruptions",
]
