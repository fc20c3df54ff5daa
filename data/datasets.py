"""The data sets that configs name, and how each is opened."""

from dataclasses import asdict, dataclass, replace

from data.config import DatasetParams, SimCLRParams
from data.folder_images import FolderImages
from data.folders import ImageList, hold_out, list_images
from data.images import Feed, ImageSet, Unreadable
from data.memory_images import MemoryImages
from data.preprocessing import Channels, Preprocessing
from utils.data_roots import Contents
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

PRESETS = {
    "cifar100": Preset(image_size=224, augmentation="flip", in_memory=True, simclr=SIMCLR_SMALL),
    "imagenet": Preset(image_size=224, augmentation="resized_crop_flip", in_memory=False, simclr=SIMCLR),
    # A mirrored glyph is another glyph.
    "glyphs": Preset(image_size=24, augmentation="crop", in_memory=True, simclr=replace(SIMCLR_SMALL, flip=False)),
}


def resolve_preprocessing(params: DatasetParams, defaults: Preprocessing | None = None) -> Preprocessing:
    """How images are prepared: as `params` says, else as models want it by `defaults`, else as suits the data set."""
    preset = PRESETS[params.name]
    of_preset = Preprocessing(preset.image_size, preset.mean, preset.std, "bilinear")
    return Preprocessing(params.image_size).completed(defaults or Preprocessing()).completed(of_preset)


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
        split: "training" or "validation".
        seed: of the shuffling and the augmentation.
        all_classes: read every class, whatever `num_classes` says, and those that the training split lacks (evaluation
            always does).
        defaults: how the models want the images, where the config does not say.

    Raises:
        UserError: the layout is not there, a training class is empty, too many images are unreadable, or the
            augmentation does not go with the data set.
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
    feed = Feed(
        image_size=resolve_image_size(params, defaults),
        augmentation=augmentation,
        mean=preprocessing.mean or preset.mean,
        std=preprocessing.std or preset.std,
        unreadable=Unreadable(params.max_unreadable),
        world=world,
        seed=seed,
    )
    if preset.in_memory:
        return MemoryImages(listed, feed, data_root=params.data_root)
    return FolderImages(listed, feed, num_workers=params.num_workers)


def list_split(params: DatasetParams, split: str, *, all_classes: bool = False) -> ImageList:
    """The images of a split.

    With `held_out` both splits are parts of the training images, and the validation images are not touched.

    Raises:
        UserError: there are no folders, `num_classes` is more than there are, or a class has too few images to hold
            some out.
    """
    if params.held_out is not None:
        whole = list_split(replace(params, held_out=None), "training", all_classes=all_classes)
        kept, held = hold_out(whole, params.held_out)
        return kept if split == "training" else replace(held, notes=[])  # which were those of the other part
    return list_images(params.data_root, split, params.num_classes, all_classes=all_classes)


def contents_of(params: DatasetParams, world: World, **splits: ImageSet) -> Contents | None:
    """What images a run reads, for its checkpoint, on the main process; None on the others.

    Names and sizes, but no times: a scheduler may copy the data anew for each start. The list that is there is used;
    looking up the sizes of ImageNet's 1.3 million files takes some 10 seconds on a local disk.
    """
    if not world.is_main:
        return None
    return {split: images.listed.contents(params.data_root) for split, images in splits.items()}
