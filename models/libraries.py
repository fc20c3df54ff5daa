"""Networks of torchvision and timm: their pooled features, their weights, and the images that they were made for.

`torchvision/NAME` is any classification model of `torchvision.models.get_model`, `timm/NAME` any model of timm, which
is no requirement.
"""

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from models.states import load_state
from utils.config import unknown_choice
from utils.errors import UserError, said
from utils.extras import load_extra
from utils.files import read_torch
from utils.references import library_of, weights_file

DEFAULT = "DEFAULT"  # weights: those that the library gives where it is asked for no others
NEAREST = 5  # names, of the thousand that there may be, that an error about an unknown one shows
INNER = ("state_dict", "model")  # where the checkpoints of common training scripts keep the weights


class PooledFeatures(NamedTuple):
    """A network without its classifier."""

    module: nn.Module  # images (B, 3, H, W) -> (B, dim)
    dim: int
    left_out: tuple[str, ...]  # how the names of the parameters begin that were the classifier's


class Library(Protocol):
    """What is asked of a library of networks."""

    def names(self) -> Sequence[str]:
        """Its architectures."""

    def weights(self, name: str) -> Sequence[str]:
        """The names of an architecture's weights; DEFAULT is one more."""

    def build(self, name: str, weights: str | None, image_size: int | None) -> PooledFeatures:
        """An architecture with weights by their name, or with random ones; see `library_features`."""

    def preprocessing(self, name: str, weights: str) -> dict[str, Any]:
        """The images that weights were trained on; see `library_preprocessing`."""


class Torchvision:
    """The classifier of all its networks is the last linear layer or convolution that they define."""

    # Those whose published weights take images of another normalisation, to which they map ours when told to. They are
    # always told, so that what is built to hold saved weights is the network that was saved.
    INCEPTIONS = ("googlenet", "inception_v3")
    AUXILIARY = ("aux1", "aux2", "AuxLogits")  # further classifiers of theirs

    def __init__(self) -> None:
        from torchvision import models

        self.models = models

    def names(self) -> Sequence[str]:
        return self.models.list_models(module=self.models)

    def weights(self, name: str) -> Sequence[str]:
        return [weights.name for weights in self.models.get_model_weights(name)]

    def build(self, name: str, weights: str | None, image_size: int | None) -> PooledFeatures:
        options: dict[str, Any] = {}
        size = image_size or self.preprocessing(name, weights or DEFAULT)["image_size"]
        family = name.partition("_")[0]
        if family == "vit":
            options["image_size"] = size
        if family == "maxvit":
            options["input_size"] = (size, size)
        if name in self.INCEPTIONS:
            options |= {"transform_input": True} | ({"init_weights": True} if weights is None else {})
        model = self.models.get_model(name, weights=weights, **options)
        if name in self.INCEPTIONS:
            model.aux_logits = False
            for auxiliary in self.AUXILIARY:
                setattr(model, auxiliary, None)
        place, classifier = [part for part in model.named_modules() if isinstance(part[1], nn.Linear | nn.Conv2d)][-1]
        model.set_submodule(place, nn.Identity())
        dim = classifier.in_features if isinstance(classifier, nn.Linear) else classifier.in_channels
        return PooledFeatures(model, dim, tuple(f"{name}." for name in (place, *self.AUXILIARY)))

    def preprocessing(self, name: str, weights: str) -> dict[str, Any]:
        transform = self.models.get_model_weights(name)[weights].transforms()
        return {
            "image_size": transform.crop_size[0],
            "mean": tuple(transform.mean),
            "std": tuple(transform.std),
            "interpolation": transform.interpolation.value,
        }


class Timm:
    """A name may go on with that of weights, as timm writes it: `resnet18.a1_in1k`."""

    def __init__(self, where: str) -> None:
        self.timm = load_extra("timm", where=where)

    def names(self) -> Sequence[str]:
        return [*self.timm.list_models(), *self.timm.list_pretrained()]

    def weights(self, name: str) -> Sequence[str]:
        names = self.timm.list_pretrained(f"{name.partition('.')[0]}.*")
        return [tag for _, _, tag in (full.partition(".") for full in names)]

    def build(self, name: str, weights: str | None, image_size: int | None) -> PooledFeatures:
        full = self._full(name, weights)
        fixed = self.timm.get_pretrained_cfg(full).fixed_input_size
        options = {"img_size": image_size} if fixed and image_size is not None else {}
        model = self.timm.create_model(full, pretrained=weights is not None, num_classes=0, **options)
        classifier = self.timm.get_pretrained_cfg(full).classifier or ()
        places = (classifier,) if isinstance(classifier, str) else classifier
        dim = getattr(model, "head_hidden_size", None) or model.num_features
        return PooledFeatures(model, dim, tuple(f"{place}." for place in places))

    def preprocessing(self, name: str, weights: str) -> dict[str, Any]:
        wanted = self.timm.get_pretrained_cfg(self._full(name, weights))
        return {
            "image_size": wanted.input_size[-1],
            "mean": tuple(wanted.mean),
            "std": tuple(wanted.std),
            "interpolation": wanted.interpolation,
        }

    @staticmethod
    def _full(name: str, weights: str | None) -> str:
        return name if weights in (None, DEFAULT) else f"{name.partition('.')[0]}.{weights}"


def library_features(arch: str, weights: str | None, image_size: int | None, *, where: str) -> PooledFeatures:
    """A network of a library without its classifier.

    Args:
        arch: `torchvision/NAME` or `timm/NAME`.
        weights: name of weights of the library, a file with a state dict, or None for random ones.
        image_size: pixels a side, for networks that are built for one; None: as the library builds them.
        where: the config key that names the weights, for error messages.

    Raises:
        UserError: an unknown architecture or name of weights, weights of another architecture, a failed download, an
            image size that the network cannot have, or a package that is not installed.
    """
    library, name = _open_library(arch, where=where)
    file = weights_file(weights)
    named = None if file is not None else weights
    _check_weights(library, name, named, f"{where}: {arch}")
    try:
        features = library.build(name, named, image_size)
    except OSError as error:  # downloads are all that touches files here
        raise UserError(
            f"{where}: {arch}: the weights {named} cannot be downloaded ({said(error)});\n"
            "put them where the library keeps its downloads, or name a file of them (docs/models.md)"
        ) from error
    except Exception as error:  # of the library's own checks of what it builds
        raise UserError(f"{where}: {arch}: cannot be built ({said(error)})") from error
    if file is not None:
        _load_weights(features, file, where=f"{where}: {arch}")
    return features


def library_preprocessing(arch: str, weights: str | None, *, where: str) -> dict[str, Any]:
    """How the images were prepared that a library's weights were trained on, or its default ones where none are named.

    Returns:
        `image_size` in pixels a side, `mean` and `std` of each channel as fractions, the name of the `interpolation`.

    Raises:
        UserError: as `library_features`.
    """
    library, name = _open_library(arch, where=where)
    named = DEFAULT if weights is None or weights_file(weights) is not None else weights
    _check_weights(library, name, named, f"{where}: {arch}")
    return library.preprocessing(name, named)


def _open_library(arch: str, *, where: str) -> tuple[Library, str]:
    """The library of `torchvision/NAME` or `timm/NAME`, and NAME.

    Raises:
        UserError: it has no such network, or is not installed.
    """
    prefix = library_of(arch)
    assert prefix is not None
    library: Library = Torchvision() if prefix == "torchvision" else Timm(where)
    name, names = arch.removeprefix(f"{prefix}/"), library.names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.4)
        raise UserError(f"{where}: {prefix} has no network {name!r}; names like it: {', '.join(nearest) or 'none'}")
    return library, name


def _check_weights(library: Library, name: str, weights: str | None, where: str) -> None:
    known = [DEFAULT, *library.weights(name)]
    if weights is not None and weights not in known:
        raise UserError(unknown_choice(f"{where}: weights", weights, known))


def _load_weights(features: PooledFeatures, file: str, *, where: str) -> None:
    """Load a state dict of the library's network, whatever classifier it has, from a `.safetensors` or torch file.

    Raises:
        UserError: there is no such file, it holds no state dict, or one of another architecture: names the first
            parameters that it lacks and has too many.
    """
    model, state = features.module, _read_state(file, where)
    for name in [name for name in state if name.startswith(features.left_out)]:
        del state[name]
    expected = model.state_dict()
    lacking = [f"it lacks {name}" for name in expected if name not in state]
    beyond = [f"it has {name} beyond them" for name in state if name not in expected]
    misshapen = [
        f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if differences := [*lacking[:1], *beyond[:1], *misshapen[:1]]:
        raise UserError(f"{where}: the weights in {file} are of another architecture: {', '.join(differences)}")
    load_state(model, state)


def _read_state(file: str, where: str) -> dict[str, torch.Tensor]:
    of_safetensors = file.endswith(".safetensors")
    read = load_extra("safetensors.torch", where=f"{where}: {file}").load_file if of_safetensors else read_torch
    try:
        content = read(file)
    except Exception as error:  # what safetensors raises is of a kind of its own
        raise UserError(f"{where}: the weights {file} cannot be read ({said(error)})") from error
    for inner in INNER:
        if isinstance(content, dict) and isinstance(content.get(inner), dict):
            content = content[inner]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{where}: {file} holds no state dict, the parameters of a network by name")
    return content
