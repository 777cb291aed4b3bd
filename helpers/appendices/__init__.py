"""What only the appendices A1 to A3 use; nothing else imports from here.

letters           A1: printed letters, made to look like scanned handwriting, and the networks that learn them
halves            A2: images by class, and the classes divided into halves
transferability   A2: what the layers that learned one half are worth for the other half
transfer_results  A2: what that experiment's results say
contrastive       A3: pretraining without labels, and what its features are worth
unlabelled        A3: images without labels, to be pretrained on
plots             the figures of A2 and A3
"""

from helpers.appendices.contrastive import Pairs, pretrain, score_features
from helpers.appendices.halves import halve_classes, open_classes
from helpers.appendices.plots import plot_pretraining, plot_transfer
from helpers.appendices.transfer_results import (
    compare_arms,
    compare_costs,
    compare_runs,
    describe_transfer,
    published_results,
    summarize_transfer,
)
from helpers.appendices.transferability import LONGER, run_transfer
from helpers.appendices.unlabelled import find_unlabelled
from helpers.evaluation.intervals import mean_interval as interval_over_splits

__all__ = [
    "LONGER",
    "Pairs",
    "compare_arms",
    "compare_costs",
    "compare_runs",
    "describe_transfer",
    "find_unlabelled",
    "halve_classes",
    "interval_over_splits",
    "open_classes",
    "plot_pretraining",
    "plot_transfer",
    "pretrain",
    "published_results",
    "run_transfer",
    "score_features",
    "summarize_transfer",
]
