"""The config class of each script that a suite can run, and whose keys are documented."""

from embedding.config import EmbedConfig
from evaluation.config import EvalConfig
from trainers.backbone.config import BackboneConfig
from trainers.transformation.config import FitConfig, TransformationConfig

SCHEMAS = {
    "train_backbone.py": BackboneConfig,
    "train_transformation.py": TransformationConfig,
    "fit_embeddings.py": FitConfig,
    "embed.py": EmbedConfig,
    "eval.py": EvalConfig,
}
