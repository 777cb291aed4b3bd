"""What is frozen is computed once; the head is solved; the rest is fine-tuned from there.

activations   images and a frozen prefix  ->  activations at a boundary, kept on disk
heads         features and labels         ->  the best linear head, and the classifier with it
probing       what each depth of the network knows already
optimizers    how large the steps are: over time, from stage to stage
checkpoint    nothing of a training is lost, and its result is recalibrated
weights       class weights, blends of weights, precision
recipe        the defaults of fine-tuning, and why
fine_tuning   all of it in one call
familiarity   is an image like those that a classifier learned from?
files         a classifier is one file
"""

from helpers._keras import on_all_devices, set_seed
from helpers.training.activations import (
    Activations,
    compute_activations,
    content_digest,
    half_precision_error,
    load_activations,
)
from helpers.training.calibration import cool, judge, log_loss
from helpers.training.checkpoint import Checkpoint, show_progress, tensorboard_logs
from helpers.training.familiarity import Familiarity, learn_familiarity
from helpers.training.files import load_classifier, load_familiarity, load_settings, save_backbone, save_model
from helpers.training.fine_tuning import fine_tune, prepare_training, seed_training, training_batches
from helpers.training.heads import STRENGTHS, attach_head, fit_head, head_weights
from helpers.training.optimizers import decaying_rates, make_optimizer, warmup_cosine
from helpers.training.probing import choose_cut, load_features, probe_depth
from helpers.training.recipe import Recipe, count_epochs, first_stage
from helpers.training.weights import blend_weights, computing_in, cross_entropy, weigh_classes

__all__ = [
    "STRENGTHS",
    "Activations",
    "Familiarity",
    "Checkpoint",
    "Recipe",
    "attach_head",
    "blend_weights",
    "choose_cut",
    "compute_activations",
    "computing_in",
    "content_digest",
    "cool",
    "count_epochs",
    "cross_entropy",
    "decaying_rates",
    "fine_tune",
    "first_stage",
    "fit_head",
    "half_precision_error",
    "head_weights",
    "judge",
    "learn_familiarity",
    "load_activations",
    "load_classifier",
    "load_familiarity",
    "load_features",
    "load_settings",
    "log_loss",
    "make_optimizer",
    "on_all_devices",
    "prepare_training",
    "probe_depth",
    "save_backbone",
    "save_model",
    "seed_training",
    "set_seed",
    "show_progress",
    "tensorboard_logs",
    "training_batches",
    "warmup_cosine",
    "weigh_classes",
]
