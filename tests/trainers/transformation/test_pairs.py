"""Pairs: what is cached is what streaming would compute, and every frozen model runs once a view."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from data.config import DatasetParams
from data.datasets import open_images
from data.images import Batch, ImageSet, shuffled_batches
from embedding.cache import HALF_TOLERANCE, EmbeddingCache, rounded
from models.embedding import embed
from tests.tiny import TRANSFORMATION, write_images
from trainers.transformation.config import TransformationConfig
from trainers.transformation.pairs import PairBatch, PairsInMemory, StreamedPairs, build_pairs, embedded_views
from utils.config import build, parse_yaml
from utils.distributed import World
from utils.errors import UserError
from utils.precision import Resolved

ITEMS, BATCH = 20, 6


class Frozen(nn.Module):
    """A model whose embedding tells an image from its mirror image, and which counts its runs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(3 * 8 * 8, dim).requires_grad_(False)
        self.runs: list[int] = []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.runs.append(len(images))
        embedding = self.project(images.flatten(1))
        return embedding, embedding[:, :, None, None]


def make_models(*, side_info: bool = True) -> dict[str, Frozen]:
    torch.manual_seed(0)
    models = {"old": Frozen(4), "new": Frozen(5), "side_info": Frozen(3)}
    return models if side_info else {"old": models["old"], "new": models["new"]}


def open_set(root: Path, augmentation: Any = "flip", **options: Any) -> ImageSet:
    params = DatasetParams(
        name="cifar100", data_root=str(root), batch_size=BATCH, image_size=8, augmentation=augmentation, **options
    )
    return open_images(params, "training", World(), seed=0)


def cached_pairs(
    models: Mapping[str, nn.Module], images: ImageSet, folder: Path | None = None, drawn_views: int | None = None
) -> PairsInMemory:
    """Pairs that keep their embeddings in `folder`, if there is one; a model is told from others by its weights."""
    hashes = {role: str(sum(weight.sum().item() for weight in model.parameters())) for role, model in models.items()}
    cache = EmbeddingCache(folder, "", hashes, World())
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "world": World()}
    views = embedded_views(models, images, cache, drawn_views=drawn_views, precision="fp32", **options)
    return PairsInMemory(views, exhaustive=drawn_views is None, **options)


def streamed_pairs(models: dict[str, Frozen], images: ImageSet) -> StreamedPairs:
    return StreamedPairs(models, images, batch_size=BATCH, precision="fp32", world=World())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), classes=2, training=ITEMS // 2, validation=1, size=8)


def near(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether an embedding is another but for the rounding to half precision."""
    return bool((actual - expected).norm() <= HALF_TOLERANCE * expected.norm())


def view_drawn(batch: PairBatch, items: torch.Tensor, views: list[dict[str, torch.Tensor]]) -> list[int]:
    """The view that each row of a batch shows; it must be the same one for every model."""
    drawn = []
    for row, item in enumerate(items.tolist()):
        (view,) = [v for v, embeddings in enumerate(views) if near(batch.new[row], embeddings["new"][item])]
        assert near(batch.old[row], views[view]["old"][item])
        if batch.side_info is not None:
            assert near(batch.side_info[row], views[view]["side_info"][item])
        drawn.append(view)
    return drawn


@pytest.mark.parametrize("side_info", [False, True])
def test_cached_and_streamed_batches_hold_the_same_items_in_true_views(root: Path, side_info: bool) -> None:
    models, images = make_models(side_info=side_info), open_set(root)
    views = [
        {
            name: torch.cat([embed(model, b.images).embedding for b in images.view_batches(view, 7)])
            for name, model in models.items()
        }
        for view in range(2)
    ]
    sources = (cached_pairs(models, images), streamed_pairs(models, images))
    for epoch in range(2):
        items = shuffled_batches(ITEMS, BATCH, World(), seed=0, epoch=epoch)
        for source in sources:
            assert len(source) == ITEMS
            for rows, batch in zip(items, source.batches(epoch), strict=True):
                view_drawn(batch, rows, views)
                assert torch.equal(batch.labels, images.labels[rows])
                assert (batch.side_info is not None) == side_info
                assert batch.old.dtype == torch.float32
                assert not batch.old.is_inference()  # autograd takes it


def test_both_views_are_drawn_about_equally_and_anew_every_epoch(root: Path) -> None:
    pairs = cached_pairs(make_models(), open_set(root))
    drawn = [
        tuple(
            view
            for rows, batch in zip(
                shuffled_batches(ITEMS, BATCH, World(), seed=0, epoch=epoch), pairs.batches(epoch), strict=True
            )
            for view in view_drawn(batch, rows, [view.embeddings for view in pairs.views])
        )
        for epoch in range(30)
    ]
    # 18 items in each of 30 epochs: 270 mirrored, with a standard deviation of 11.6.
    assert abs(sum(map(sum, drawn)) - 270) < 50
    assert len(set(drawn)) == 30


def test_batches_are_a_function_of_the_epoch(root: Path) -> None:
    models, images = make_models(), open_set(root)
    used, fresh = cached_pairs(models, images), cached_pairs(models, images)
    list(used.batches(0))
    for actual, expected in zip(used.batches(3), fresh.batches(3), strict=True):
        torch.testing.assert_close(tuple(actual), tuple(expected), rtol=0, atol=0)


def test_processes_share_the_batches_that_one_process_has(root: Path) -> None:
    pairs = cached_pairs(make_models(), open_set(root))
    alone = list(pairs.batches(1))
    shares = []
    for rank in range(2):
        pairs.world = World(rank, 2)
        shares.append(list(pairs.batches(1)))
    for batch, *parts in zip(alone, *shares, strict=True):
        for name in PairBatch._fields:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@pytest.mark.parametrize("size", [1, 2])
def test_every_view_once_over_all_processes(root: Path, size: int) -> None:
    pairs = cached_pairs(make_models(), open_set(root))
    shares = []
    for rank in range(size):
        pairs.world = World(rank, size)
        shares.append(list(pairs.views_once()))
    assert all(len(batch.labels) <= BATCH for batches in shares for batch in batches)
    drawn = torch.cat([batch.new for batches in shares for batch in batches])
    views = torch.cat([view.embeddings["new"].float() for view in pairs.views])
    assert sorted(drawn.tolist()) == sorted(views.tolist())
    assert len(drawn) == 2 * ITEMS


@pytest.mark.parametrize(("augmentation", "views"), [("none", 1), ("flip", 2)])
def test_every_model_sees_every_view_of_every_image_once(root: Path, augmentation: str, views: int) -> None:
    models = make_models(side_info=False)
    pairs = cached_pairs(models, open_set(root, augmentation))
    for epoch in range(3):
        list(pairs.batches(epoch))
    assert [model.runs for model in models.values()] == [[6, 6, 6, 2] * views] * 2


def test_a_model_in_two_places_runs_once(root: Path) -> None:
    model = Frozen(4)
    pairs = cached_pairs({"old": model, "new": model}, open_set(root, "none"))
    assert sum(model.runs) == ITEMS
    assert torch.equal(pairs.views[0].embeddings["old"], pairs.views[0].embeddings["new"])


def test_streaming_runs_every_model_once_a_batch_without_gradients(root: Path) -> None:
    models = make_models(side_info=False)
    models["old"].requires_grad_(True)
    batches = list(streamed_pairs(models, open_set(root)).batches(0))
    assert [model.runs for model in models.values()] == [[6, 6, 6]] * 2
    assert not any(batch.old.requires_grad for batch in batches)


def test_unreadable_images_do_not_shift_the_labels(tmp_path: Path) -> None:
    write_images(tmp_path, classes=2, training=5, validation=1, size=8)
    (tmp_path / "training" / "0" / "001.png").write_text("no image")
    models, images = make_models(), open_set(tmp_path, "none", max_unreadable=0.5)
    pairs = cached_pairs(models, images)
    assert len(pairs) == 9
    assert pairs.views[0].labels.tolist() == [0] * 4 + [1] * 5
    assert sum(models["old"].runs) == 9


@pytest.mark.parametrize(
    ("augmentation", "cache", "kind"),
    [
        ("flip", "auto", PairsInMemory),
        ("none", "auto", PairsInMemory),
        ("flip", "memory", PairsInMemory),
        ("flip", "off", StreamedPairs),
        ("crop_flip", "auto", StreamedPairs),
    ],
)
def test_few_views_are_cached_unless_it_is_off(
    root: Path, tmp_path: Path, augmentation: str, cache: str, kind: type
) -> None:
    config = config_in(tmp_path, root, cache_embeddings=cache)
    models = make_models(side_info=False)
    assert type(build_pairs(models, open_set(root, augmentation), config, "fp32", World())) is kind
    assert (tmp_path / "embeddings").exists() == (kind is PairsInMemory and cache == "auto")


def config_in(folder: Path, root: Path, **values: Any) -> TransformationConfig:
    """A config whose files are in `folder`, with stand-ins for the two model files."""
    for role in ("old", "new"):
        (folder / f"{role}.pt").write_text(role)
    paths = {f"{role}_model_path": str(folder / f"{role}.pt") for role in ("old", "new")}
    output = {"output_transformation_path": str(folder / "h.pt")}
    config = build(TransformationConfig, {**parse_yaml(TRANSFORMATION), **paths, **output, **values}, source="tiny")
    config.dataset_params.data_root = str(root)
    return config


def test_drawn_views_take_turns_and_are_those_of_the_first_epochs(root: Path) -> None:
    models, images = make_models(), open_set(root, "crop_flip")
    pairs = cached_pairs(models, images, drawn_views=2)
    runs = [sum(model.runs) for model in models.values()]
    assert runs == [2 * ITEMS] * 3
    epochs = [list(pairs.batches(epoch)) for epoch in range(4)]
    assert [sum(model.runs) for model in models.values()] == runs
    for epoch, batches in enumerate(epochs):
        view = images.training_batches(epoch % 2, BATCH, keep_last=True)
        drawn = torch.cat([embed(models["new"], b.images).embedding for b in view])
        mine = torch.cat([batch.new for batch in batches])
        nearest = torch.cdist(mine, drawn).argmin(1)
        assert len(nearest.unique()) == 18  # the last batch of an epoch is not full, and is left out
        assert all(near(row, drawn[match]) for row, match in zip(mine, nearest, strict=True))
    assert not torch.equal(epochs[0][0].new, epochs[2][0].new)  # the same views, shuffled anew


class Numbered(nn.Module):
    """A model whose embedding of an image is the number written on it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0].amax((1, 2)).unsqueeze(1)


class NumberedImages:
    """An image set whose images are their numbers, in random views that do not change them."""

    num_views = None

    def __init__(self, count: int, unreadable: dict[int, set[int]] | None = None) -> None:
        self.labels, self.unreadable = torch.arange(count) % 3, unreadable or {}

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        shares = shuffled_batches(len(self), batch_size, World(), seed=0, epoch=epoch, keep_last=keep_last)
        for rows in shares:
            rows = torch.tensor([row for row in rows.tolist() if row not in self.unreadable.get(epoch, set())])
            yield Batch(rows.float()[:, None, None, None].expand(-1, 3, 2, 2), self.labels[rows], rows)


@pytest.mark.parametrize("unreadable", [{}, {0: {3, 19}, 1: {0, 3}}])
def test_what_is_held_out_is_in_no_drawn_view(unreadable: dict[int, set[int]]) -> None:
    """Also where the batches do not divide the items, and where an image is unreadable in one of the views."""
    model, images = Numbered(), NumberedImages(ITEMS, unreadable)
    pairs = cached_pairs({"old": model, "new": model}, images, drawn_views=2)  # type: ignore[arg-type]
    readable = set(range(ITEMS)) - set().union(*unreadable.values())
    assert len(pairs) == len(readable)
    held = {int(number) for number in pairs.set_aside(0.25).new}
    assert len(held) == round(0.25 * len(readable))
    for view in pairs.views:
        assert {int(number) for number in view.embeddings["new"]} == readable - held
        assert torch.equal(view.labels, images.labels[view.embeddings["new"].flatten().long()])
    trained = {int(number) for epoch in range(6) for batch in pairs.batches(epoch) for number in batch.new}
    assert trained == readable - held


def test_the_number_of_drawn_views_is_stated(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_in(tmp_path, root, cached_views=3)
    pairs = build_pairs(make_models(side_info=False), open_set(root, "crop_flip"), config, "fp32", World())
    assert isinstance(pairs, PairsInMemory)
    assert "embedding once: 3 randomly drawn views of each image" in capsys.readouterr().out


def test_embeddings_on_disk_serve_the_next_run_and_models_that_are_new_to_them(root: Path, tmp_path: Path) -> None:
    images = open_set(root)
    first = cached_pairs(make_models(), images, tmp_path)
    again = make_models()
    second = cached_pairs(again, images, tmp_path)
    assert not any(model.runs for model in again.values())
    for view, expected in zip(second.views, first.views, strict=True):
        torch.testing.assert_close(view, expected, rtol=0, atol=0)
    assert second.views[0].embeddings["old"].dtype == torch.float16
    other = make_models()
    nn.init.ones_(other["new"].project.weight)
    cached_pairs(other, images, tmp_path)
    assert [bool(model.runs) for model in other.values()] == [False, True, False]


def cache_of(config: TransformationConfig, folder: Path, precision: Resolved) -> EmbeddingCache:
    models = {"old": str(config.old_model_path), "new": str(config.new_model_path)}
    return EmbeddingCache.of(config.dataset_params, models, folder, precision, World())


def test_other_data_another_transform_or_arithmetic_is_embedded_anew(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(root, data)

    def source(precision: Any = "fp32", **params: Any) -> str:
        config = config_in(tmp_path, data)
        config.dataset_params = replace(config.dataset_params, **params)
        return cache_of(config, tmp_path, precision).source

    before = source()
    assert source(num_workers=0) == before
    assert len({before, source("bf16"), source(image_size=32), source(augmentation="none"), source(num_classes=1)}) == 5
    image = data / "training" / "0" / "000.png"
    image.touch()
    touched = source()
    image.unlink()
    assert len({before, touched, source()}) == 3


def test_embeddings_of_fewer_images_are_not_mixed_in(root: Path, tmp_path: Path) -> None:
    images = open_set(root, "none")
    cached_pairs(make_models(), images, tmp_path)
    (folder, *_) = tmp_path.iterdir()
    for file in folder.iterdir():
        np.save(file, np.load(file)[1:])
    with pytest.raises(UserError, match=f"embeddings_dir: {tmp_path} was filled while other images"):
        cached_pairs(make_models(), images, tmp_path)


def test_damaged_embeddings_are_made_anew(root: Path, tmp_path: Path) -> None:
    images = open_set(root, "none")
    cached_pairs(make_models(), images, tmp_path)
    (file, *_) = sorted(tmp_path.glob("*/embeddings.npy"))
    file.write_bytes(file.read_bytes()[:50])
    models = make_models()
    cached_pairs(models, images, tmp_path)
    assert sorted(bool(model.runs) for model in models.values()) == [False, False, True]
    models = make_models()
    cached_pairs(models, images, tmp_path)
    assert not any(model.runs for model in models.values())


@settings(deadline=None)
@given(exponent=st.floats(-12, 12), seed=st.integers(0, 99))
def test_rounding_stays_within_its_tolerance_at_any_scale(exponent: float, seed: int) -> None:
    embeddings = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    assert all(near(row.float(), expected) for row, expected in zip(rounded(embeddings), embeddings, strict=True))
    if -3 < exponent < 3:
        assert rounded(embeddings).dtype == torch.float16
