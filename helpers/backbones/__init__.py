"""Any pretrained Keras network as named stages that can be cut and frozen.

A *backbone* is an ordinary functional Keras model from raw images (uint8 RGB, values 0..255) to a vector of features:
preprocessing, the pretrained layers and global average pooling, all in one flat graph.

A *cut point* is a place in that graph through which exactly one tensor passes. The network splits there into a
*prefix* and a *suffix*, both ordinary Keras models that share its layers and compose to the whole. The layers between
cut points are grouped into the *stages* that people know by name (`conv4`, `block_7`).

    loading         a network of keras.applications, a .keras file or a preset of KerasHub  ->  a backbone
    features        what enters a classifier's head
    preprocessing   what values a network was trained on, and whether it gets them
    graphs          the layer graph, networks inside networks spread out
    stages, costs   its stages, the cut between them, and what each computes
    freezing        stages frozen or free to learn, every weight compared before and after
"""

from helpers._keras import keras
from helpers.backbones.features import describe_features, features_tensor
from helpers.backbones.freezing import audit_weights, copy_weights, freeze
from helpers.backbones.loading import load_backbone, load_model
from helpers.backbones.preprocessing import check_preprocessing
from helpers.backbones.stages import cut, describe_stages, truncate

__all__ = [
    "audit_weights",
    "check_preprocessing",
    "copy_weights",
    "cut",
    "describe_features",
    "describe_stages",
    "features_tensor",
    "freeze",
    "keras",
    "load_backbone",
    "load_model",
    "truncate",
]
