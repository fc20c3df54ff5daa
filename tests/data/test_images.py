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
from PIL import Image, ImageOps
from torchvision import transforms

from data.config import DatasetParams
from data.contrastive_views import ViewRecipe
from data.datasets import IMAGENET_MEAN, IMAGENET_STD, PRESETS, open_images
from data.folder_images import Decoder, FolderImages, Job
from data.folders import ImageList, list_images, read_pixels
from data.images import Batch, Feed, ImageSet, Unreadable, shuffled_batches
from data.memory_images import MemoryImages
from tests.tiny import write_images
from utils.distributed import World
from utils.errors import UserError
from utils.seeds import Stream, seed_of

SETS: list[Any] = [MemoryImages, FolderImages]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), classes=3, training=7, validation=2)


def open_as(kind: Any, root: Path, split: str = "training", **options: Any) -> Any:
    workers = {"num_workers": options.pop("num_workers", 0)} if kind is FolderImages else {}
    plain = Feed(16, "none", IMAGENET_MEAN, IMAGENET_STD, Unreadable(0.0), World(), seed=0)
    return kind(list_images(root, split), replace(plain, **options), **workers)


def levels(batch: Batch) -> torch.Tensor:
    """The images of a batch as levels 0..255 again, (B, 3, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((batch.images * std + mean) * 255).round()


def whole(batches: Any) -> Batch:
    parts = list(batches)
    return Batch(*(torch.cat(column) for column in zip(*parts, strict=True)))


# Shuffled batches


@settings(deadline=None)
@given(
    count=st.integers(1, 200),
    local=st.integers(1, 20),
    size=st.integers(1, 5),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    keep_last=st.booleans(),
)
def test_processes_share_the_batches_that_one_process_has(
    count: int, local: int, size: int, seed: int, epoch: int, keep_last: bool
) -> None:
    batch_size = local * size

    def shares_of(world: World) -> list[torch.Tensor]:
        return shuffled_batches(count, batch_size, world, seed=seed, epoch=epoch, keep_last=keep_last)

    alone, shares = shares_of(World()), [shares_of(World(rank, size)) for rank in range(size)]
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([share[step] for share in shares]), batch)
    assert all(len(share) == len(alone) for share in shares)
    items = torch.cat(alone).tolist()
    assert len(set(items)) == len(items) == (count if keep_last else count // batch_size * batch_size or count)
    assert set(items) <= set(range(count))
    assert all(len(batch) == batch_size for batch in alone[: -1 if keep_last else None]) or len(alone) == 1


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(shuffled_batches(60, 20, World(), seed=seed, epoch=epoch)).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert order(0, 1) != sorted(order(0, 1))


# Both kinds of image sets


@pytest.mark.parametrize("kind", SETS)
def test_the_evaluation_view_is_every_image_in_order(kind: Any, root: Path) -> None:
    images: ImageSet = open_as(kind, root, "validation", image_size=14)
    batch = whole(images.view_batches(0, batch_size=4))
    listed = list_images(root, "validation")
    assert len(images) == len(listed) == 6
    assert batch.indices.tolist() == list(range(6))
    assert batch.labels.tolist() == listed.labels == images.labels.tolist()
    assert batch.images.shape == (6, 3, 14, 14)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", SETS)
def test_an_epoch_is_every_image_once_with_its_own_label(kind: Any, root: Path) -> None:
    images: ImageSet = open_as(kind, root)
    batch = whole(images.training_batches(0, batch_size=7))
    assert sorted(batch.indices.tolist()) == list(range(21))
    assert torch.equal(batch.labels, images.labels[batch.indices])
    plain = whole(images.view_batches(0, batch_size=21)).images
    assert torch.equal(batch.images, plain[batch.indices])


@pytest.mark.parametrize("kind", SETS)
def test_views_are_what_training_draws(kind: Any, root: Path) -> None:
    images: ImageSet = open_as(kind, root, augmentation="flip")
    assert images.num_views == 2
    views = [whole(images.view_batches(view, batch_size=8)).images for view in range(2)]
    assert torch.equal(views[1], views[0].flip(3))
    mirrored = 0
    for epoch in range(8):
        batch, drawn = whole(images.training_batches(epoch, batch_size=7)), list[bool]()
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            assert torch.equal(image, views[0][index]) != torch.equal(image, views[1][index])
            drawn.append(torch.equal(image, views[1][index]))
        assert len(set(drawn)) == 2  # each image has a draw of its own
        mirrored += sum(drawn)
    # 168 draws of chance 0.5: a standard deviation of 6.5.
    assert abs(mirrored - 84) < 30


@pytest.mark.parametrize(
    ("kind", "augmentation"), [(kind, name) for kind in SETS for name in kind.AUGMENTATIONS if name != "none"]
)
def test_an_epoch_is_a_function_of_seed_and_epoch(kind: Any, augmentation: str, root: Path) -> None:

    def epoch_of(images: ImageSet, epoch: int) -> Batch:
        return whole(images.training_batches(epoch, 7))

    used, fresh, other = (open_as(kind, root, augmentation=augmentation, seed=seed) for seed in (0, 0, 1))
    epoch_of(used, 0)
    torch.manual_seed(1)
    first = epoch_of(used, 1)
    for actual, expected in zip(epoch_of(fresh, 1), first, strict=True):
        assert torch.equal(actual, expected)
    assert not torch.equal(epoch_of(used, 2).images, first.images)
    assert not torch.equal(epoch_of(other, 1).images, first.images)


@pytest.mark.parametrize("kind", SETS)
def test_processes_together_see_what_one_sees(kind: Any, root: Path) -> None:
    alone: ImageSet = open_as(kind, root, augmentation="flip")
    shares: list[ImageSet] = [open_as(kind, root, augmentation="flip", world=World(rank, 2)) for rank in range(2)]
    for batch, *parts in zip(*(images.training_batches(3, 6) for images in (alone, *shares)), strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
    everything = [index for images in shares for index in whole(images.view_batches(0, 4)).indices.tolist()]
    assert everything == list(range(21))


@pytest.mark.parametrize("kind", SETS)
def test_unreadable_images_are_named_counted_and_left_out(
    kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, classes=2, training=5, validation=1)
    listed = list_images(tmp_path, "training")
    plain = whole(open_as(kind, tmp_path).view_batches(0, 10)).images
    listed.paths[1].write_bytes(listed.paths[1].read_bytes()[:-60])
    listed.paths[7].write_text("no image")
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
    output = capsys.readouterr().out
    assert output.splitlines() == [
        f"unreadable image, left out (1 of 10 so far): {listed.paths[1]}",
        f"unreadable image, left out (2 of 10 so far): {listed.paths[7]}",
    ]
    with pytest.raises(UserError, match=r"1/002\.png: 2 of 10 images are unreadable, more than the share of 0\.19"):
        list(open_as(kind, tmp_path, unreadable=Unreadable(0.19)).view_batches(0, 4))


@pytest.mark.parametrize("kind", SETS)
def test_an_image_of_no_known_range_is_named_with_its_mode(
    kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, classes=1, training=3, validation=1)
    path = tmp_path / "training" / "0" / "f.tif"
    Image.fromarray(np.ones((16, 16), np.float32)).save(path)
    why = r"levels of mode F have no known range: save it with 8 or 16 bits"
    batch = whole(open_as(kind, tmp_path, unreadable=Unreadable(0.25)).view_batches(0, 4))
    assert batch.indices.tolist() == [0, 1, 2]
    assert capsys.readouterr().out == f"unreadable image, left out (1 of 4 so far): {path} ({why})\n"
    with pytest.raises(UserError, match=rf"f\.tif \({why}\): 1 of 4 images are unreadable"):
        list(open_as(kind, tmp_path).view_batches(0, 4))


def test_16_bit_images_differ_as_their_8_bit_ones_do(tmp_path: Path) -> None:
    """Not white, all of them."""
    write_images(tmp_path, classes=2, training=3, validation=1)
    paths = list_images(tmp_path, "training").paths
    for path in paths:
        with Image.open(path) as image:
            image.convert("L").save(path)
    plain = whole(open_as(MemoryImages, tmp_path).view_batches(0, 6)).images
    for path in paths:
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(path)
    for kind, expected in ((MemoryImages, plain), (FolderImages, plain[:, :, 1:15, 1:15])):
        size = expected.shape[-1]
        assert torch.equal(whole(open_as(kind, tmp_path, image_size=size).view_batches(0, 6)).images, expected)


@pytest.mark.parametrize("kind", SETS)
def test_grayscale_and_cmyk_jpegs_are_images_like_others(kind: Any, tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=1, validation=1)
    for mode in ("L", "CMYK"):
        Image.new("RGB", (16, 16), (90, 90, 90)).convert(mode).save(tmp_path / "training" / "0" / f"{mode}.jpg")
    batch = whole(open_as(kind, tmp_path).view_batches(0, 3))
    assert ((levels(batch)[1:] - 90).abs() <= 3).all()


def test_both_kinds_see_the_same_levels(root: Path) -> None:
    # 14 is what a crop of 8/7 leaves of 16 pixels: the folder set takes the centre without resizing.
    in_memory = whole(open_as(MemoryImages, root).view_batches(0, 21))
    from_folder = whole(open_as(FolderImages, root, image_size=14).view_batches(0, 21))
    assert torch.equal(levels(in_memory)[:, :, 1:15, 1:15], levels(from_folder))
    expected = np.stack([np.asarray(Image.open(path)) for path in list_images(root, "training").paths])
    assert np.array_equal(levels(in_memory).permute(0, 2, 3, 1).numpy(), expected)


# Sets in memory


def test_resized_images_are_pils(tmp_path: Path) -> None:
    """CIFAR-100's case: 32 pixels a side become 224."""
    write_images(tmp_path, classes=2, training=2, validation=1, size=32)
    images = open_as(MemoryImages, tmp_path, image_size=224, augmentation="flip")
    for view, mirror in ((0, False), (1, True)):
        batch = levels(whole(images.view_batches(view, 4)))
        for path, actual in zip(list_images(tmp_path, "training").paths, batch, strict=True):
            with Image.open(path) as picture:
                expected = picture.resize((224, 224), Image.Resampling.BILINEAR)
            expected = ImageOps.mirror(expected) if mirror else expected
            assert np.abs(actual.permute(1, 2, 0).numpy() - np.asarray(expected)).max() <= 1


def test_random_crops_pad_an_eighth_of_the_side(root: Path) -> None:
    images = open_as(MemoryImages, root, augmentation="crop_flip")
    assert images.augmentation == (2, True)
    assert images.num_views is None
    plain = levels(whole(images.view_batches(0, 21)))
    padded = torch.nn.functional.pad(plain, (2, 2, 2, 2))
    batch = whole(images.training_batches(0, 21))
    for image, index in zip(levels(batch), batch.indices.tolist(), strict=True):
        crops = [padded[index, :, top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
        assert any(torch.equal(image, view) for crop in crops for view in (crop, crop.flip(2)))


def test_images_of_different_sizes_do_not_fit_in_one_array(tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=2, validation=1)
    Image.new("RGB", (17, 16)).save(tmp_path / "training" / "0" / "other.png")
    with pytest.raises(UserError, match=r"other\.png: is \(16, 17\) pixels, others \(16, 16\)"):
        open_as(MemoryImages, tmp_path)


def test_a_set_without_any_readable_image(tmp_path: Path) -> None:
    folder = tmp_path / "training" / "0"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    with pytest.raises(UserError, match="no image of the data set is readable"):
        open_as(MemoryImages, tmp_path, unreadable=Unreadable(1.0))
    assert not list(open_as(FolderImages, tmp_path, unreadable=Unreadable(1.0)).view_batches(0, 1))


# Sets in folders


def test_worker_processes_change_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    epochs = []
    for workers in (0, 1, 2):
        images = open_as(FolderImages, root, augmentation="resized_crop_flip", num_workers=workers)
        assert images.num_workers == workers
        epochs.append(whole(images.training_batches(1, 7)))
    for other in epochs[1:]:
        assert torch.equal(other.images, epochs[0].images)
        assert torch.equal(other.indices, epochs[0].indices)


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


def test_stand_ins_are_the_next_readable_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, classes=1, training=8, validation=1)
    listed = list_images(tmp_path, "training")
    for index in (2, 3, 5, 7):
        listed.paths[index].write_text("no image")
    decoder = Decoder(listed, 16, seed=0, max_unreadable=0.5)
    job = Job([3, 7], resized_crop=False, flip=0.0, epoch=0, stand_ins=True)
    pixels, indices, unreadable = decoder[job]
    assert (indices.tolist(), unreadable) == ([0, 1], [3, 7])
    assert torch.equal(pixels, decoder[job._replace(indices=[0, 1])].pixels)
    assert decoder[job._replace(indices=[5, 2])].indices.tolist() == [4, 6]
    assert decoder[job._replace(indices=[5, 2])].unreadable == [5, 2, 3]
    assert decoder[job._replace(indices=[3, 4])].indices.tolist() == [4]  # one is enough to take part
    assert decoder[job._replace(stand_ins=False)].indices.tolist() == []
    # Where the run will end, no more files are tried.
    assert Decoder(listed, 16, seed=0, max_unreadable=0.1)[job].unreadable == [3, 7]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resized_crops_and_flips_are_torchvisions(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    write_images(tmp_path, classes=2, training=6, validation=1, size=75)
    images = open_as(FolderImages, tmp_path, augmentation="resized_crop_flip", seed=3, num_workers=num_workers)
    batch = whole(images.training_batches(4, 12))
    transform = transforms.Compose([transforms.RandomResizedCrop(16), transforms.RandomHorizontalFlip()])
    differences = []
    for index, actual in zip(batch.indices.tolist(), levels(batch), strict=True):
        with Image.open(images.listed.paths[index]) as picture, torch.random.fork_rng():
            torch.manual_seed(seed_of(3, Stream.AUGMENT, 4, index))
            expected = np.asarray(transform(picture))
        differences.append(np.abs(actual.permute(1, 2, 0).numpy() - expected))
    assert np.max(differences) <= 1
    assert np.mean(differences) < 0.3  # PIL's resizing rounds otherwise


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_iteration_may_be_left_and_another_begun(
    num_workers: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    images = open_as(FolderImages, root, augmentation="flip", num_workers=num_workers)
    left = images.training_batches(0, 3)
    next(left)
    batch = whole(images.training_batches(1, 7))
    expected = whole(open_as(FolderImages, root, augmentation="flip").training_batches(1, 7))
    assert torch.equal(batch.images, expected.images)
    assert torch.equal(batch.indices, expected.indices)
    with pytest.raises(RuntimeError, match="a later iteration"):
        next(left)


def test_workers_go_on_when_a_scheduler_terminates_the_job(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
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


def test_the_evaluation_view_is_the_centre_of_the_resized_image(tmp_path: Path) -> None:
    write_images(tmp_path, classes=1, training=1, validation=1)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    (tmp_path / "validation" / "0" / "000.png").unlink()
    picture.save(tmp_path / "validation" / "0" / "large.png")
    actual = levels(whole(open_as(FolderImages, tmp_path, "validation", image_size=28).view_batches(0, 1)))[0]
    expected = picture.resize((48, 32), Image.Resampling.BILINEAR).crop((10, 2, 38, 30))
    assert np.abs(actual.permute(1, 2, 0).numpy() - np.asarray(expected)).max() <= 1


# What configs name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_opens(name: Any, root: Path) -> None:
    params = DatasetParams(name=name, data_root=str(root), batch_size=7, num_workers=0, num_classes=2)
    images = open_images(params, "training", World(), seed=0)
    batch = next(images.training_batches(0, 7))
    size = PRESETS[name].image_size
    assert batch.images.shape == (7, 3, size, size)
    assert len(images) == 14
    assert len(open_images(params, "training", World(), seed=0, all_classes=True)) == 21


def test_an_augmentation_that_the_set_does_not_take(root: Path) -> None:
    params = DatasetParams(name="cifar100", data_root=str(root), batch_size=7, augmentation="resized_crop_flip")
    with pytest.raises(
        UserError,
        match=r"dataset_params\.augmentation: cifar100 takes none, flip, crop, crop_flip, not resized_crop_flip",
    ):
        open_images(params, "training", World(), seed=0)
