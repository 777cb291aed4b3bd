"""One function, one figure: readable in grey, labelled, and described in words for who cannot see it.

figures     a figure with its description; what several figures draw alike
images      the images: counts, examples, sizes, problems
network     its stages: what is taken, frozen, learning
models      one model: its training, its mistakes, its calibration, where it looks; arms on changed images
study       from which stage on to fine-tune, and at what rate: probe, race and final
"""

from helpers.plots.images import (
    plot_augmentations,
    plot_counts,
    plot_examples,
    plot_image_rows,
    plot_problems,
    plot_sizes,
    plot_steps,
)
from helpers.plots.models import (
    plot_confusion,
    plot_corrupted_examples,
    plot_corruptions,
    plot_grad_cam,
    plot_history,
    plot_mistakes,
    plot_predictions,
    plot_reliability,
    plot_results,
    plot_strengths,
    prediction_titles,
)
from helpers.plots.network import plot_stages
from helpers.plots.study import plot_costs, plot_depth, plot_differences, plot_labels, plot_probe, plot_rates

__all__ = [
    "plot_augmentations",
    "plot_confusion",
    "plot_corrupted_examples",
    "plot_corruptions",
    "plot_costs",
    "plot_counts",
    "plot_depth",
    "plot_differences",
    "plot_examples",
    "plot_grad_cam",
    "plot_history",
    "plot_image_rows",
    "plot_labels",
    "plot_mistakes",
    "plot_predictions",
    "plot_probe",
    "plot_problems",
    "plot_rates",
    "plot_reliability",
    "plot_results",
    "plot_sizes",
    "plot_stages",
    "plot_steps",
    "plot_strengths",
    "prediction_titles",
]
