"""How a config names a model: a file, an architecture of a library, or a function; and the one of its outputs to take.

Only the form of the text is looked at here. What it names is found by `models.foreign`.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

Library = Literal["torchvision", "timm"]
LIBRARIES: tuple[Library, ...] = ("torchvision", "timm")
WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_OUTPUT = re.compile(r"(.+)\[([^\[\]]+)\]")


class ModelReference(NamedTuple):
    """What the text that names a model says."""

    kind: Literal["file", "python", "torchvision", "timm"]
    name: str  # of the file, of the function (`package.module:function`), or of the library's architecture
    weights: str | None = None  # of a library's architecture: a name or a file; None: those of the library's choice
    output: str | None = None  # key or place of the embedding among several outputs

    @property
    def file(self) -> str | None:
        """The file that the model, or its weights, lie in; None where there is none."""
        return self.name if self.kind == "file" else weights_file(self.weights)


def parse_reference(text: str) -> ModelReference:
    """What `text` says.

    >>> parse_reference("checkpoints/old.pt2[1]")
    ModelReference(kind='file', name='checkpoints/old.pt2', weights=None, output='1')
    >>> parse_reference("torchvision/resnet18:IMAGENET1K_V1")
    ModelReference(kind='torchvision', name='resnet18', weights='IMAGENET1K_V1', output=None)
    >>> parse_reference("python:mine.models:clip[image_embeds]")
    ModelReference(kind='python', name='mine.models:clip', weights=None, output='image_embeds')
    """
    match = _OUTPUT.fullmatch(text)
    name, output = match.groups() if match else (text, None)
    if name.startswith("python:"):
        return ModelReference("python", name.removeprefix("python:"), output=output)
    library = library_of(name)
    if library is None:
        return ModelReference("file", name, output=output)
    architecture, _, weights = name.removeprefix(f"{library}/").partition(":")
    return ModelReference(library, architecture, weights or None, output)


def library_of(name: str) -> Library | None:
    """The library that an architecture is of, by its prefix; None where it is none of a library.

    >>> library_of("timm/resnet18"), library_of("ResNet18")
    ('timm', None)
    """
    return next((library for library in LIBRARIES if name.startswith(f"{library}/")), None)


def weights_file(weights: str | None) -> str | None:
    """The file that `weights` name; None where they name weights that a library knows.

    >>> weights_file("IMAGENET1K_V1"), weights_file("resnet18.pth")
    (None, 'resnet18.pth')
    """
    if weights is None or (Path(weights).suffix not in WEIGHTS_SUFFIXES and "/" not in weights):
        return None
    return weights
