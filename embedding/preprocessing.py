"""Images as frozen models want them: several see the same batch, each normalised as it was trained."""

from collections.abc import Mapping
from dataclasses import asdict

from torch import nn

from data.config import DatasetParams
from data.datasets import resolve_preprocessing
from data.preprocessing import Preprocessing, agreed
from models.model_files import Description, build_model
from utils.errors import UserError


def preprocessing_of(description: Description) -> Preprocessing:
    """How the images were prepared that a model was trained on, as far as its description says."""
    return Preprocessing(**description.get("preprocessing") or {})


def wanted_by(descriptions: Mapping[str, Description], params: DatasetParams) -> Preprocessing:
    """How the images are to be prepared for several models where the config does not say: as these agree upon.

    Where they have different means and standard deviations, each is given its own (`build_for`).

    Args:
        descriptions: config key -> the model that it names.

    Raises:
        UserError: they were trained on images of different sizes, and the config does not say which to take.
    """
    wanted = {where: preprocessing_of(description) for where, description in descriptions.items()}
    sizes = {where: each.image_size for where, each in wanted.items() if each.image_size is not None}
    if params.image_size is None and len(set(sizes.values())) > 1:
        listed = ", ".join(f"{where} of {size} px" for where, size in sizes.items())
        raise UserError(f"dataset_params.image_size: the models take images of different sizes ({listed}); set it")
    return agreed(list(wanted.values()))


def build_for(description: Description, params: DatasetParams, defaults: Preprocessing, *, where: str) -> nn.Module:
    """The model that a description describes, in eval mode on the CPU, for images that are prepared in this way.

    Raises:
        UserError: see `build_model`.
    """
    return build_model(description, where=where, seen=asdict(resolve_preprocessing(params, defaults)))
