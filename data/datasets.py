"""The data sets that configs name, and how each is opened."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from data.config import DatasetParams, SimCLRParams
from data.folder_images import FolderImages
from data.folders import ImageList, class_folders, hold_out, list_images, thin_out, unknown_split
from data.images import Feed, ImageSet, Unreadable
from data.lists import check_files, list_from_file
from data.memory_images import MemoryImages
from data.preprocessing import Channels, Preprocessing
from utils.data_roots import SPLITS, Contents
from utils.distributed import World
from utils.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preset:
    """What a data set's name stands for."""

    image_size: int
    augmentation: str
    in_memory: bool
    simclr: SimCLRParams
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD


# SimCLR's settings for ImageNet (section 2), and those for CIFAR-10 (appendix B.9), which other small images take too.
SIMCLR = SimCLRParams(temperature=0.1, jitter_strength=1.0, blur=True, flip=True)
SIMCLR_SMALL = replace(SIMCLR, temperature=0.5, jitter_strength=0.5, blur=False)

LARGE = Preset(image_size=224, augmentation="resized_crop_flip", in_memory=False, simclr=SIMCLR)

PRESETS = {
    "cifar100": Preset(image_size=224, augmentation="flip", in_memory=True, simclr=SIMCLR_SMALL),
    "imagenet": LARGE,
    "folder": LARGE,
    "list": LARGE,
    # A mirrored glyph is another glyph.
    "glyphs": Preset(image_size=24, augmentation="crop", in_memory=True, simclr=replace(SIMCLR_SMALL, flip=False)),
}


def resolve_preprocessing(params: DatasetParams, defaults: Preprocessing | None = None) -> Preprocessing:
    """How images are prepared: as `params` says, else as models want it by `defaults`, else as suits the data set."""
    preset = PRESETS[params.name]
    stated = Preprocessing(params.image_size, _channels(params.mean), _channels(params.std), params.interpolation)
    of_preset = Preprocessing(preset.image_size, preset.mean, preset.std, "bilinear")
    return stated.completed(defaults or Preprocessing()).completed(of_preset)


def _channels(values: list[float] | None) -> Channels | None:
    return None if values is None else (values[0], values[1], values[2])


def resolve_image_size(params: DatasetParams, defaults: Preprocessing | None = None) -> int:
    """Pixels a side of the images that the models see; see `resolve_preprocessing`."""
    size = resolve_preprocessing(params, defaults).image_size
    assert size is not None
    return size


def resolve_simclr(params: SimCLRParams, name: str) -> SimCLRParams:
    """`params`, with what they leave out as it suits the data set `name`."""
    given = {key: value for key, value in asdict(params).items() if value is not None}
    return replace(PRESETS[name].simclr, **given)


def open_images(
    params: DatasetParams,
    split: str,
    world: World,
    *,
    seed: int,
    all_classes: bool = False,
    defaults: Preprocessing | None = None,
) -> ImageSet:
    """Open a split of the data set that `dataset_params` names.

    Args:
        split: as for `list_split`.
        seed: of the shuffling and the augmentation.
        all_classes: read every class, whatever `num_classes` says, and those that the training split lacks (evaluation
            always does).
        defaults: how the models want the images, where the config does not say.

    Raises:
        UserError: the layout is not there, a training class is empty, files of a list are missing, too many images are
            unreadable, or the augmentation does not go with the data set.
    """
    preset, preprocessing = PRESETS[params.name], resolve_preprocessing(params, defaults)
    augmentation = params.augmentation or preset.augmentation
    choices = (MemoryImages if preset.in_memory else FolderImages).AUGMENTATIONS
    if augmentation not in choices:
        raise UserError(f"dataset_params.augmentation: {params.name} takes {', '.join(choices)}, not {augmentation}")
    listed = list_split(params, split, all_classes=all_classes)
    if world.is_main:
        for note in listed.notes:
            print(note, flush=True)
        if params.list_path is not None:
            check_files(listed, params.list_path, params.data_root)
    feed = Feed(
        image_size=resolve_image_size(params, defaults),
        augmentation=augmentation,
        mean=preprocessing.mean or preset.mean,
        std=preprocessing.std or preset.std,
        interpolation=preprocessing.interpolation or "bilinear",
        whole_image=params.whole_image,
        unreadable=Unreadable(params.max_unreadable),
        world=world,
        seed=seed,
    )
    if preset.in_memory:
        return MemoryImages(listed, feed, data_root=params.data_root)
    return FolderImages(listed, feed, num_workers=params.num_workers)


def named_split(params: DatasetParams, split: str) -> str:
    """What a data set calls its `training` and its `validation` split; the name of any other as it is."""
    return {"training": params.training_split, "validation": params.validation_split}.get(split, split)


def list_split(params: DatasetParams, split: str, *, all_classes: bool = False) -> ImageList:
    """The images of a split.

    With `held_out` the training and the validation split are parts of the training images, and the validation images
    are not touched. What `thinned` leaves out is missing in the training split alone.

    Args:
        split: `training` or `validation`, which are what `dataset_params` calls so, or the name of any other.

    Raises:
        UserError: there is no such split, `num_classes` or `thinned` names more classes than there are, or a class has
            too few images to hold some out.
    """
    if params.thinned is not None:
        whole = list_split(replace(params, thinned=None), split, all_classes=all_classes)
        return thin_out(whole, range(*params.thinned.classes), params.thinned.share) if split == "training" else whole
    if params.held_out is not None and split in SPLITS:
        whole = list_split(replace(params, held_out=None), "training", all_classes=all_classes)
        kept, held = hold_out(whole, params.held_out)
        return kept if split == "training" else replace(held, notes=[])  # which were those of the other part
    split = named_split(params, split)
    root, num_classes, training_split = Path(params.data_root), params.num_classes, params.training_split
    if params.list_path is not None:
        return list_from_file(
            params.list_path,
            root,
            split,
            num_classes=num_classes,
            all_classes=all_classes,
            training_split=training_split,
        )
    if params.name != "folder":
        return list_images(root, split, num_classes, all_classes=all_classes, training_split=training_split)
    folders = class_folders(root) if root.is_dir() else []
    if not (root / split).is_dir():
        raise UserError(unknown_split(f"dataset_params.data_root: {root}", split, folders))
    listed = list_images(
        root, split, num_classes, all_classes=all_classes, training_split=training_split, other_splits=folders
    )
    return replace(listed, ids=np.array([path.relative_to(root).as_posix() for path in listed.paths]))


def contents_of(params: DatasetParams, world: World, **splits: ImageSet | None) -> Contents | None:
    """What images of those splits a run reads, for its checkpoint, on the main process; None on the others.

    Names and sizes, but no times: a scheduler may copy the data anew for each start. The list that is there is used;
    looking up the sizes of ImageNet's 1.3 million files takes some 10 seconds on a local disk.
    """
    if not world.is_main:
        return None
    read = {split: images.listed for split, images in splits.items() if images is not None}
    return {split: listed.contents(params.data_root) for split, listed in read.items()}
