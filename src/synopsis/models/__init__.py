"""Whole networks, built from the sequence layers of ``synopsis.memory``."""

from synopsis.models.base import MODELS, Model, load_model
from synopsis.models.classifiers import PairMatcher, PixelClassifier, SequenceClassifier
from synopsis.models.layers import LAYERS

__all__ = [
    "LAYERS",
    "MODELS",
    "Model",
    "PairMatcher",
    "PixelClassifier",
    "SequenceClassifier",
    "load_model",
]
