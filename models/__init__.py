"""What maps images or embeddings to embeddings, and the one place that saves and loads them."""

from models.backbones import build_backbone
from models.embedding import TransformedModel, embed
from models.model_files import load_model, save_model
from models.transformations import build_transformation
from models.transformed import Transformed

__all__ = [
    "Transformed",
    "TransformedModel",
    "build_backbone",
    "build_transformation",
    "embed",
    "load_model",
    "save_model",
]
