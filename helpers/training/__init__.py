"""What is frozen is computed once; the head is fitted to convergence; the rest is fine-tuned from there.

activations   images and a frozen prefix  ->  activations at a cut point, kept on disk
heads         features and labels         ->  the best linear head, and the classifier with it
probing       what each depth of the network knows already
calibration   the log-loss at the best temperature, and how to apply it
checkpoint    nothing of a training is lost, and its result is recalibrated
fine_tuning   recipe, learning rates, precision, compile and fit
ood           is an image like those that a classifier learned from?
files         a classifier is one file
"""

from helpers._keras import set_seed
from helpers.training.activations import compute_activations, load_activations
from helpers.training.calibration import log_loss
from helpers.training.checkpoint import show_progress
from helpers.training.files import load_classifier, load_ood_detector, load_settings, save_backbone, save_model
from helpers.training.fine_tuning import (
    Recipe,
    fine_tune,
    layerwise_factors,
    make_optimizer,
    plan_epochs,
    prepare_training,
    training_callbacks,
    training_datasets,
    warmup_cosine,
)
from helpers.training.heads import attach_head, fit_head, weigh_classes
from helpers.training.probing import choose_cut, probe_depth

__all__ = [
    "Recipe",
    "attach_head",
    "choose_cut",
    "compute_activations",
    "fine_tune",
    "layerwise_factors",
    "fit_head",
    "load_activations",
    "load_classifier",
    "load_ood_detector",
    "load_settings",
    "log_loss",
    "make_optimizer",
    "plan_epochs",
    "prepare_training",
    "probe_depth",
    "save_backbone",
    "save_model",
    "set_seed",
    "show_progress",
    "training_callbacks",
    "training_datasets",
    "warmup_cosine",
    "weigh_classes",
]
