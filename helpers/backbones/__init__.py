"""Any pretrained Keras network as named stages that can be cut and frozen.

A *backbone* is an ordinary functional Keras model from raw images (uint8 RGB, values 0..255) to a vector of
features: preprocessing, the pretrained layers and global average pooling, all in one flat graph.

A *boundary* is a place in that graph through which exactly one tensor passes. The network splits there into
a *prefix* and a *suffix*, both ordinary Keras models that share its layers and compose to the whole. The
layers between boundaries are grouped into the *stages* that people know by name (`conv4`, `block_7`).

    loading         a name, a file or a preset  ->  a backbone
    applications    the networks of keras.applications and their weights
    files           .keras files, presets of KerasHub
    preprocessing   what values a network was trained on, and whether it gets them
    graphs          the layer graph, networks inside networks spread out
    stages          its boundaries, the stages between them, the cut at one of them
    costs           what each part of it computes
    freezing        stages frozen or free to learn, every weight compared before and after
"""

from helpers._keras import keras
from helpers.backbones.files import load_model
from helpers.backbones.freezing import audit_weights, copy_weights, freeze, weights_by_path
from helpers.backbones.loading import describe_features, features_tensor, load_backbone, logits_tensor
from helpers.backbones.preprocessing import PREPROCESSING, PreprocessingCheck, check_preprocessing, preprocess
from helpers.backbones.stages import (
    Stage,
    cut,
    cut_points,
    describe_stages,
    find_stages,
    pool_features,
    stage_at,
    truncate,
)

__all__ = [
    "PREPROCESSING",
    "PreprocessingCheck",
    "Stage",
    "audit_weights",
    "check_preprocessing",
    "copy_weights",
    "cut",
    "cut_points",
    "describe_features",
    "describe_stages",
    "features_tensor",
    "find_stages",
    "freeze",
    "keras",
    "load_backbone",
    "logits_tensor",
    "load_model",
    "pool_features",
    "preprocess",
    "stage_at",
    "truncate",
    "weights_by_path",
]
