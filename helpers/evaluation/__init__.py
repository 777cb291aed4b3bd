"""What a trained model gets right and wrong, how sure one can be of it, and why.

metrics   accuracy with its interval, two models on the same images, the arms side by side
"""

from helpers.evaluation.metrics import (
    ARMS,
    accuracy_interval,
    compare,
    describe_comparison,
    evaluate,
    is_correct,
    results_table,
)

__all__ = [
    "ARMS",
    "accuracy_interval",
    "compare",
    "describe_comparison",
    "evaluate",
    "is_correct",
    "results_table",
]
