"""Image sets: every image once an epoch, in views that depend on (seed, epoch) alone, on any number of processes."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional as TF

from data.config import DatasetParams
from data.contrastive_views import ViewRecipe
from data.datasets import IMAGENET_MEAN, IMAGENET_STD, PRESETS, open_images, resolve_image_size
from data.folder_images import Decoder, FolderImages, Job
from data.folders import ImageList, list_images, read_pixels
from data.images import Batch, Feed, ImageSet, Unreadable, shuffled_batches
from data.memory_images import MemoryImages
from data.preprocessing import Preprocessing
from tests.tiny import write_images
from utils.distributed import World
from utils.errors import UserError
from utils.seeds import Stream, seed_of

SETS: list[Any] = [MemoryImages, FolderImages]
both_kinds = pytest.mark.parametrize("kind", SETS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), classes=3, training=7, validation=2)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def open_as(kind: Any, root: Path, split: str = "training", **options: Any) -> Any:
    workers = {"num_workers": options.pop("num_workers", 0)} if kind is FolderImages else {}
    plain = Feed(16, "none", IMAGENET_MEAN, IMAGENET_STD, Unreadable(0.0), World(), seed=0)
    return kind(list_images(root, split), replace(plain, **options), **workers)


def levels(images: torch.Tensor) -> np.ndarray:
    """Normalised images (B, 3, H, W) as levels 0..255 again, (B, H, W, 3)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images * std + mean) * 255).round().permute(0, 2, 3, 1).numpy()


def whole(batches: Any) -> Batch:
    return Batch(*map(torch.cat, zip(*batches, strict=True)))


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_processes_share_the_batches_that_one_process_has(
    count: int, local: int, size: int, epoch: int, keep_last: bool
) -> None:
    batch_size = local * size
    alone, *shares = (
        shuffled_batches(count, batch_size, world, seed=0, epoch=epoch, keep_last=keep_last)
        for world in (World(), *(World(rank, size) for rank in range(size)))
    )
    for batch, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat(parts), batch)
    items = torch.cat(alone).tolist()
    assert len(set(items)) == len(items) == (count if keep_last else count // batch_size * batch_size or count)
    assert set(items) <= set(range(count))
    assert all(len(batch) == batch_size for batch in alone[: -1 if keep_last else None]) or len(alone) == 1


@both_kinds
def test_evaluation_is_of_every_image_in_order_and_an_epoch_of_every_image_once(kind: Any, root: Path) -> None:
    images: ImageSet = open_as(kind, root)
    plain = whole(images.view_batches(0, batch_size=4))
    assert plain.indices.tolist() == list(range(21))
    assert plain.labels.tolist() == list_images(root, "training").labels == images.labels.tolist()
    assert plain.images.is_contiguous(memory_format=torch.channels_last)
    shares = [open_as(kind, root, world=World(rank, 2)).view_batches(0, 4) for rank in range(2)]
    for actual, expected in zip(whole(batch for share in shares for batch in share), plain, strict=True):
        assert torch.equal(actual, expected)
    batch = whole(images.training_batches(0, batch_size=7))
    assert sorted(batch.indices.tolist()) == list(range(21)) != batch.indices.tolist()
    assert torch.equal(batch.labels, images.labels[batch.indices])
    assert torch.equal(batch.images, plain.images[batch.indices])


@both_kinds
def test_views_are_what_training_draws(kind: Any, root: Path) -> None:
    images: ImageSet = open_as(kind, root, augmentation="flip")
    assert images.num_views == 2
    views = [whole(images.view_batches(view, batch_size=8)).images for view in range(2)]
    assert torch.equal(views[1], views[0].flip(3))
    mirrored = []
    for epoch in range(2):
        batch = whole(images.training_batches(epoch, batch_size=7))
        drawn = {
            index: [torch.equal(image, view[index]) for view in views]
            for image, index in zip(batch.images, batch.indices.tolist(), strict=True)
        }
        assert {tuple(which) for which in drawn.values()} == {(True, False), (False, True)}
        mirrored.append({index for index, (_, is_mirrored) in drawn.items() if is_mirrored})
    assert mirrored[0] != mirrored[1]


@pytest.mark.parametrize(
    ("kind", "augmentation"), [(kind, name) for kind in SETS for name in (*kind.AUGMENTATIONS, "pairs")]
)
def test_an_epoch_is_a_function_of_seed_and_epoch_on_any_number_of_processes(
    kind: Any, augmentation: str, root: Path
) -> None:
    pairs = augmentation == "pairs"

    def images(**options: Any) -> ImageSet:
        return open_as(kind, root, augmentation="none" if pairs else augmentation, **options)

    def epoch_of(images: ImageSet, epoch: int) -> list[torch.Tensor]:
        recipe = ViewRecipe(flip=True, strength=1, blur=True)
        batches: Any = images.view_pairs(recipe, epoch, 6) if pairs else images.training_batches(epoch, 6)
        return [batch.images for batch in batches]

    used = images()
    epoch_of(used, 0)
    torch.manual_seed(1)
    first = epoch_of(used, 1)
    assert all(map(torch.equal, epoch_of(images(), 1), first))
    assert not torch.equal(epoch_of(used, 2)[0], first[0])
    assert not torch.equal(epoch_of(images(seed=1), 1)[0], first[0])
    shares = [epoch_of(images(world=World(rank, 2)), 1) for rank in range(2)]
    for batch, *parts in zip(first, *shares, strict=True):
        views = zip(*(part.chunk(1 + pairs) for part in parts), strict=True)
        together = torch.cat([part for view in views for part in view])
        torch.testing.assert_close(together, batch, rtol=0, atol=1e-5 if pairs else 0)
        assert batch.is_contiguous(memory_format=torch.channels_last)


@both_kinds
def test_a_pair_is_two_views_of_one_image(kind: Any, root: Path) -> None:
    """Of views that are the whole image, some in grey, both are as bright as that image; and grey is drawn for each."""
    recipe = ViewRecipe(flip=False, strength=0, blur=False, min_area=1.0)
    pairs = torch.cat([batch.images for batch in open_as(kind, root).view_pairs(recipe, 0, 7)])
    seen = torch.from_numpy(levels(pairs)).permute(0, 3, 1, 2)
    listed = list_images(root, "training")
    stored = torch.stack([torch.tensor(listed.pixels(index)) for index in range(21)]).permute(0, 3, 1, 2).float()
    distances = torch.cdist(*(TF.rgb_to_grayscale(images).flatten(1) for images in (seen, stored)))
    assert distances.min(1).values.max() < 16  # a level each of 256 pixels
    first, second = distances.argmin(1).view(3, 2, 7).unbind(1)
    assert torch.equal(first, second)
    assert sorted(first.flatten().tolist()) == list(range(21))
    grey = (seen.amax(1) - seen.amin(1)).flatten(1).amax(1) <= 1
    first, second = grey.view(3, 2, 7).unbind(1)
    assert not torch.equal(first, second)


@both_kinds
def test_unreadable_images_are_named_counted_and_left_out(
    kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, classes=2, training=5, validation=1)
    listed = list_images(tmp_path, "training")
    plain = whole(open_as(kind, tmp_path).view_batches(0, 10)).images
    listed.paths[1].write_bytes(listed.paths[1].read_bytes()[:-60])
    Image.fromarray(np.ones((16, 16), np.float32)).save(listed.paths[7], "tiff")
    why = "levels of mode F have no known range: save it with 8 or 16 bits"
    readable = [0, 2, 3, 4, 5, 6, 8, 9]
    unreadable = Unreadable(0.2)
    images: ImageSet = open_as(kind, tmp_path, unreadable=unreadable)
    batch = whole(images.view_batches(0, 4))
    assert batch.indices.tolist() == readable
    assert batch.labels.tolist() == [listed.labels[index] for index in readable]
    assert torch.equal(batch.images, plain[readable])
    for epoch in range(2):
        assert sorted(whole(images.training_batches(epoch, 10)).indices.tolist()) == readable
    assert unreadable.paths == {listed.paths[1], listed.paths[7]}
    assert capsys.readouterr().out.splitlines() == [
        f"unreadable image, left out (1 of 10 so far): {listed.paths[1]}",
        f"unreadable image, left out (2 of 10 so far): {listed.paths[7]} ({why})",
    ]
    with pytest.raises(UserError, match=rf"002\.png \({why}\): 2 of 10 images are unreadable, more .* share of 0\.19"):
        list(open_as(kind, tmp_path, unreadable=Unreadable(0.19)).view_batches(0, 4))


def test_evaluation_sees_the_whole_image_from_memory_and_the_centre_of_one_from_a_folder(tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=1, validation=1)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    square = picture.crop((0, 0, 56, 56))
    for image, kind, size, expected in (
        (square, MemoryImages, 56, square),
        (picture, MemoryImages, 224, picture.resize((224, 224), Image.Resampling.BILINEAR)),
        (picture, FolderImages, 28, picture.resize((48, 32), Image.Resampling.BILINEAR).crop((10, 2, 38, 30))),
        (square, FolderImages, 49, square.crop((4, 4, 53, 53))),  # 8/7 of the crop is the image: it is not resized
    ):
        image.save(tmp_path / "validation" / "0" / "000.png")
        (actual,) = levels(whole(open_as(kind, tmp_path, "validation", image_size=size).view_batches(0, 1)).images)
        assert np.abs(actual - np.asarray(expected)).max() <= (image is picture)


@pytest.mark.parametrize(
    ("kind", "whole_image", "squeezed"),
    [(MemoryImages, False, True), (FolderImages, True, True), (FolderImages, False, False)],
)
def test_bicubic_images_and_whole_ones_are_pils(kind: Any, whole_image: bool, squeezed: bool, tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=1, validation=1)
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 60))
    smooth.save(tmp_path / "validation" / "0" / "000.png")
    options = {"image_size": 28, "interpolation": "bicubic", "whole_image": whole_image}
    (actual,) = levels(whole(open_as(kind, tmp_path, "validation", **options).view_batches(0, 1)).images)
    middle = smooth.resize((48, 32), Image.Resampling.BICUBIC).crop((10, 2, 38, 30))
    expected = smooth.resize((28, 28), Image.Resampling.BICUBIC) if squeezed else middle
    assert np.abs(actual - np.asarray(expected)).max() <= 1


def test_the_config_comes_before_the_model_and_the_model_before_the_data_set(root: Path) -> None:
    params = DatasetParams("folder", str(root), 7, num_workers=0, augmentation="none")
    model = Preprocessing(image_size=20, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0), interpolation="bicubic")

    def first(params: DatasetParams, defaults: Preprocessing | None = None) -> torch.Tensor:
        images = open_images(params, "training", World(), seed=0, defaults=defaults)
        assert images.feed.image_size == resolve_image_size(params, defaults)  # type: ignore[attr-defined]
        return next(images.view_batches(0, 1)).images

    assert first(params).shape[-1] == 224
    by_model = first(params, model)
    assert by_model.shape[-1] == 20
    said = replace(params, image_size=20, mean=[0.5] * 3, std=[0.25, 0.5, 1.0], interpolation="bicubic")
    assert torch.equal(first(said), by_model)
    assert torch.equal(first(said, Preprocessing(10, IMAGENET_MEAN, IMAGENET_STD, "bilinear")), by_model)
    shift = torch.tensor([0.25, 0.0, -0.5]).view(3, 1, 1) / torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(first(replace(said, mean=[0.25, 0.5, 1.0])), by_model + shift)


# Sets in memory


@pytest.mark.parametrize(
    ("name", "augmentation"),
    [("none", (0, False)), ("flip", (0, True)), ("crop", (2, False)), ("crop_flip", (2, True))],
)
def test_random_crops_pad_an_eighth_of_the_side(name: str, augmentation: tuple[int, bool], root: Path) -> None:
    assert open_as(MemoryImages, root, augmentation=name).augmentation == augmentation


def test_images_that_make_no_array_in_memory(tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=1, validation=1)
    Image.new("RGB", (17, 16)).save(tmp_path / "training" / "0" / "other.png")
    with pytest.raises(UserError, match=r"other\.png: is \(16, 17\) pixels, others \(16, 16\)"):
        open_as(MemoryImages, tmp_path)
    (tmp_path / "validation" / "0" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match="no image of the data set is readable"):
        open_as(MemoryImages, tmp_path, "validation", unreadable=Unreadable(1.0))
    assert not list(open_as(FolderImages, tmp_path, "validation", unreadable=Unreadable(1.0)).view_batches(0, 1))


# Sets in folders


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(broken=st.sets(st.integers(0, 11), max_size=11), size=st.sampled_from([1, 2, 3]), local=st.integers(1, 4))
def test_each_process_has_a_batch_in_every_step(
    monkeypatch: pytest.MonkeyPatch, root: Path, broken: set[int], size: int, local: int
) -> None:
    """Whatever is unreadable: the others would wait for a process without a batch."""
    listed = list_images(root, "training").take(range(12))
    monkeypatch.setattr(
        ImageList, "pixels", lambda self, index: None if index in broken else read_pixels(self.paths[index])
    )
    recipe = ViewRecipe(True, 0.5, False, 0.5)
    counts = []
    for rank in range(size):
        feed = Feed(16, "flip", IMAGENET_MEAN, IMAGENET_STD, Unreadable(1.0), World(rank, size), seed=0)
        images = FolderImages(listed, feed, num_workers=0)
        batches = list(images.training_batches(0, size * local))
        for batch in batches:
            assert 0 < len(batch.indices) <= local
            assert len(set(batch.indices.tolist())) == len(batch.indices)
            assert not broken & set(batch.indices.tolist())
            assert torch.equal(batch.labels, images.labels[batch.indices])
        pairs = [len(pair.images) for pair in images.view_pairs(recipe, 0, size * local)]
        assert pairs == [2 * len(batch.indices) for batch in batches]
        assert images.feed.unreadable.paths <= {listed.paths[index] for index in broken}
        counts.append(len(batches))
        # An evaluation is of the images themselves.
        embedded = [index for batch in images.view_batches(0, local) for index in batch.indices.tolist()]
        assert embedded == sorted(set(range(12)[images.feed.world.share(12)]) - broken)
    assert counts == [12 // (size * local) or 1] * size


def test_stand_ins_are_the_next_readable_images(tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=8, validation=1)
    listed = list_images(tmp_path, "training")
    for index in (2, 3, 5, 7):
        listed.paths[index].write_text("no image")
    decoder = Decoder(listed, 16, seed=0, max_unreadable=0.5)
    job = Job([3, 7], resized_crop=False, flip=0.0, epoch=0, stand_ins=True)
    pixels, indices, unreadable = decoder[job]
    assert (indices.tolist(), unreadable) == ([0, 1], [3, 7])
    assert torch.equal(pixels, decoder[job._replace(indices=[0, 1])].pixels)
    for wanted, found, tried in (([5, 2], [4, 6], [5, 2, 3]), ([3, 4], [4], [3])):  # one is enough to take part
        assert decoder[job._replace(indices=wanted)].indices.tolist() == found
        assert decoder[job._replace(indices=wanted)].unreadable == tried
    assert decoder[job._replace(stand_ins=False)].indices.tolist() == []
    # Where the run will end, no more files are tried.
    assert Decoder(listed, 16, seed=0, max_unreadable=0.1)[job].unreadable == [3, 7]


def test_resized_crops_and_flips_are_torchvisions(tmp_path: Path) -> None:
    write_images(tmp_path, classes=2, training=6, validation=1, size=75)
    images = open_as(FolderImages, tmp_path, augmentation="resized_crop_flip", seed=3)
    batch = whole(images.training_batches(4, 12))
    transform = transforms.Compose([transforms.RandomResizedCrop(16), transforms.RandomHorizontalFlip()])
    differences = []
    for index, actual in zip(batch.indices.tolist(), levels(batch.images), strict=True):
        with Image.open(images.listed.paths[index]) as picture, torch.random.fork_rng():
            torch.manual_seed(seed_of(3, Stream.AUGMENT, 4, index))
            differences.append(np.abs(actual - np.asarray(transform(picture))))
    assert np.max(differences) <= 1
    assert np.mean(differences) < 0.3  # PIL's resizing rounds otherwise


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_worker_processes_change_nothing_even_where_an_iteration_is_left_for_another(
    num_workers: int, root: Path
) -> None:
    expected = whole(open_as(FolderImages, root, augmentation="resized_crop_flip").training_batches(1, 7))
    images = open_as(FolderImages, root, augmentation="resized_crop_flip", num_workers=num_workers)
    assert images.num_workers == num_workers
    left = images.training_batches(0, 3)
    next(left)
    for actual, wanted in zip(whole(images.training_batches(1, 7)), expected, strict=True):
        assert torch.equal(actual, wanted)
    with pytest.raises(RuntimeError, match="a later iteration"):
        next(left)


@pytest.mark.usefixtures("two_cores")
def test_workers_go_on_when_a_scheduler_terminates_the_job(root: Path) -> None:
    before = set(multiprocessing.active_children())
    images = open_as(FolderImages, root, num_workers=2)
    batches = images.training_batches(0, 1)
    for _ in range(2):
        next(batches)  # one from each worker: both have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == 19


# What configs name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_opens_and_refuses_what_is_not_for_it(name: Any, root: Path, tmp_path: Path) -> None:
    params = DatasetParams(name="folder", data_root=str(root), batch_size=7, num_workers=0, num_classes=2)
    if name == "list":
        rows = [f"{path},{path.parent.name}" for path in list_images(root, "training").paths]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    params = replace(params, name=name, list_path=str(tmp_path / "list.csv") if name == "list" else None)
    images = open_images(params, "training", World(), seed=0)
    size = PRESETS[name].image_size
    assert next(images.training_batches(0, 7)).images.shape == (7, 3, size, size)
    assert len(images) == 14
    assert len(open_images(params, "training", World(), seed=0, all_classes=True)) == 21
    wrong: Any = "resized_crop_flip" if PRESETS[name].in_memory else "crop"
    with pytest.raises(UserError, match=rf"dataset_params\.augmentation: {name} takes none, .*flip, not {wrong}"):
        open_images(replace(params, augmentation=wrong), "training", World(), seed=0)
