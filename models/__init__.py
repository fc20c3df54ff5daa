"""What maps images or embeddings to embeddings, and the one place that saves and loads them.

The names are imported when they are asked for: `models.config` is read by scripts that have not imported torch yet.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_MODULES = {
    "Transformed": "transformed",
    "TransformedModel": "embedding",
    "build_backbone": "backbones",
    "build_transformation": "transformations",
    "embed": "embedding",
    "load_model": "model_files",
    "save_model": "model_files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
