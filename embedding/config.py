"""The config of embed.py."""

from dataclasses import dataclass
from typing import Literal

from data.config import DatasetParams
from utils.choices import PROCESSES_DOC, Precision, Processes
from utils.config import key


@dataclass
class EmbedConfig:
    """embed.py: a model and images -> an embedding file."""

    model_path: str = key(
        doc="model that takes images: a model file, TorchScript or `.pt2`, `torchvision/NAME`, `timm/NAME`, or "
        "`python:package.module:function` (models.md)",
        path="model",
    )
    dataset_params: DatasetParams = key(doc="the images; `num_classes` chooses among the classes of either split")
    output_embeddings_path: str = key(
        doc="embedding file to write: `.npz`, `.parquet`, `.safetensors`, or under another name a folder of `.npy`",
        path="output",
    )
    output_classifier_path: str | None = key(
        None, doc="also write the backbone's classifier, (classes, dimension), as `.npy`", path="output"
    )
    split: str = key(
        "validation", doc="which images: `training` or `validation`, as dataset_params say, or any other split by name"
    )
    views: Literal["first", "all"] = key(
        "first", doc="the image as in evaluation, or every view that the training transform can draw, one after another"
    )
    embedding_dtype: Literal["float32", "float16"] = key("float32", doc="of the numbers in the file")
    precision: Precision = key("fp32", doc="of the model; bf16 moves a metric by up to 0.5 points")
    processes: Processes = key("auto", doc=PROCESSES_DOC, minimum=1)
