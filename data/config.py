"""Which images, how they are seen, and files of paired embeddings."""

from dataclasses import dataclass
from typing import Literal

from utils.config import key


@dataclass
class Thinned:
    """`dataset_params.thinned`: classes of which a model has seen little, as one that is biased against a group has."""

    classes: list[int] = key(
        doc="the labels from the first up to, but not including, the second, as [0, 20], of which images are left out"
    )
    share: float = key(doc="of the training images of each of them, that is trained on", minimum=0.001, maximum=1.0)

    def __post_init__(self) -> None:
        if not (len(self.classes) == 2 and 0 <= self.classes[0] < self.classes[1]):
            raise ValueError(f"classes: should be two rising labels, as [0, 20], got {self.classes}")


@dataclass
class DatasetParams:
    """`dataset_params`: which images, and how they are fed."""

    name: Literal["cifar100", "imagenet", "glyphs", "folder", "list"] = key(
        doc="the data set: its statistics, image size and transforms; folder and list: images of your own, with those "
        "of imagenet"
    )
    data_root: str = key(
        doc="folder with training/CLASS/* and validation/CLASS/*; the classes are those of training; list: the folder "
        "that its relative paths start from",
        path="any",
    )
    batch_size: int = key(doc="images a step, summed over all processes", minimum=1)
    num_classes: int | None = key(
        None, doc="train on the first so many class folders (sorted as strings); all if left out", minimum=1
    )
    held_out: float | None = key(
        None,
        doc="share of each class's training images that stands in for the validation split, to choose by: it is not "
        "trained on, and the validation images are not looked at",
        minimum=0.01,
        maximum=0.5,
    )
    thinned: Thinned | None = key(None, doc="train on a share of the images of some classes; validation keeps them all")
    num_workers: int = key(
        4, doc="processes that decode images; cifar100 and glyphs fit in memory and need none", minimum=0
    )
    image_size: int | None = key(None, doc="pixels a side; glyphs: 24, others: 224", minimum=1)
    augmentation: Literal["none", "flip", "crop", "crop_flip", "resized_crop_flip"] | None = key(
        None, doc="random training transform; cifar100: flip, glyphs: crop, others: resized_crop_flip"
    )
    mean: list[float] | None = key(
        None, doc="of red, green and blue, as fractions of the largest level, taken away; ImageNet's if left out"
    )
    std: list[float] | None = key(None, doc="likewise, by which is divided then")
    interpolation: Literal["bilinear", "bicubic"] | None = key(
        None, doc="of resizing, with antialiasing; bilinear if left out, and in the views of simclr on images in memory"
    )
    whole_image: bool = key(
        False,
        doc="see the whole of an image that is not square, squeezed, as of small images in memory; false: its middle",
    )
    list_path: str | None = key(
        None,
        doc="list: CSV or Parquet file with a row an image: `path`, `label`, and perhaps `split`, `id`, `group`, "
        "`camera`",
        path="input",
    )
    training_split: str = key("training", doc="the split to train on: a folder of data_root, or a `split` of the list")
    validation_split: str = key(
        "validation", doc="the split to validate on, and to evaluate on unless another is named"
    )
    max_unreadable: float = key(
        0.001, doc="share of unreadable images above which the run stops", minimum=0.0, maximum=1.0
    )

    def __post_init__(self) -> None:
        for name, values, positive in (("mean", self.mean, False), ("std", self.std, True)):
            if values is not None and (len(values) != 3 or (positive and min(values) <= 0)):
                above = ", above 0 each" if positive else ""
                raise ValueError(f"{name}: should be three numbers, for red, green and blue{above}, got {values}")
        if (self.name == "list") != (self.list_path is not None):
            raise ValueError("list_path: is the file of name: list; give both, or neither")


@dataclass
class SimCLRParams:
    """`simclr_params`: two views of each image, the projection head and NT-Xent."""

    temperature: float | None = key(None, doc="of the softmax over similarities; imagenet: 0.1, others: 0.5")
    projection_dim: int = key(128, doc="dimension in which views are compared", minimum=1)
    projection_hidden_dim: int = key(2048, doc="hidden width of the projection head", minimum=1)
    min_area: float = key(0.08, doc="smallest random crop, as a share of the image", minimum=0.0, maximum=1.0)
    jitter_strength: float | None = key(
        None, doc="of the colour jitter; imagenet: 1, others: 0.5", minimum=0.0, maximum=2.5
    )
    blur: bool | None = key(None, doc="Gaussian blur of every other view; imagenet: True, others: False")
    flip: bool | None = key(None, doc="mirror every other view; glyphs: False, others: True")
    knn_items: int = key(20_000, doc="training images, evenly spaced, among which the monitor looks", minimum=1)

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature: should be above 0, got {self.temperature}")


@dataclass(kw_only=True)
class PairedFiles:
    """Files with embeddings of the same items by both models.

    Embedding files are all that `data.sources` opens. Files with ids are joined by these, in any order; without ids,
    row i of all is the same item.
    """

    old: str = key(
        doc="embedding file of the items, by the old model, in any form of data.md: `embeddings` and perhaps `ids` "
        "(numbers or texts) and `labels`",
        path="input",
    )
    new: str = key(
        doc="embedding file of the same items, by the new model; joined by `ids`, or row by row if neither has any",
        path="input",
    )
    old_dim: int | None = key(
        None,
        doc="take the first so many dimensions of the old embeddings, as of a Matryoshka model, and give them the "
        "length 1 again where the file's have it; the transformation then takes those of a wider gallery by itself",
        minimum=1,
    )
    new_dim: int | None = key(
        None,
        doc="likewise of the new embeddings: upgrades and evaluations cut what they are given by themselves, a search "
        "has to cut its queries",
        minimum=1,
    )
    side_info: str | None = key(None, doc="embedding file of their side-information; likewise", path="input")
    labels: str | None = key(
        None,
        doc="their classes, negative for an item of none: a file with `labels` and, if the others have them, `ids`, or "
        "`.npy` (n,), row by row; else those of the new or old file",
        path="input",
    )
    classifier: str | None = key(
        None,
        doc="the new model's classifier, bias-free: `.npy` (classes, dimension) or a file with `classifier`; if there "
        "are labels alone, one is fitted",
        path="input",
    )
    views: int = key(
        1,
        doc="the files hold so many views of each item, one after another, as embed.py's views=all writes them; an "
        "item is held out in all of them",
        minimum=1,
    )
    normalised: Literal["auto", "on", "off"] = key(
        "auto",
        doc="give transformed embeddings length 1, for search by cosine; auto: where the new ones, but for zero "
        "vectors, have it",
    )
