"""Pairs: cached and streamed ones hold true views of the same items, and every frozen model runs once a view."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from data.images import Batch, shuffled_batches
from embedding.cache import HALF_TOLERANCE, EmbeddingCache, rounded
from tests.tiny import TRANSFORMATION
from trainers.transformation.config import TransformationConfig
from trainers.transformation.pairs import PairBatch, PairsInMemory, StreamedPairs, build_pairs, embedded_pairs
from utils.config import build, parse_yaml
from utils.distributed import World
from utils.errors import UserError

ITEMS, BATCH, VIEW = 20, 6, 100


class Frozen(nn.Module):
    """A model whose embedding is the number written on an image, times its weight. It notes how many it was shown."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.runs: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.runs.append(len(images))
        return images[:, 0, 0, :1] * self.weight  # (B, 1)


class Images:
    """An image set: item i in view v has VIEW v + i written on it.

    Args:
        num_views: of the transform; None: a random one in each epoch, which stands for its view.
        unreadable: the items that are unreadable in a view.
    """

    def __init__(self, num_views: int | None = 2, unreadable: dict[int, set[int]] | None = None) -> None:
        self.num_views, self.unreadable = num_views, unreadable or {}
        self.labels = torch.arange(ITEMS) % 3

    def __len__(self) -> int:
        return ITEMS

    def view_batches(self, view: int, batch_size: int) -> Iterator[Batch]:
        return self._shown(torch.arange(ITEMS).split(batch_size), view)

    def training_batches(self, epoch: int, batch_size: int, *, keep_last: bool = False) -> Iterator[Batch]:
        shares = shuffled_batches(ITEMS, batch_size, World(), seed=0, epoch=epoch, keep_last=keep_last)
        return self._shown(shares, epoch)

    def _shown(self, shares: Any, view: int) -> Iterator[Batch]:
        for share in shares:
            rows = torch.tensor([row for row in share.tolist() if row not in self.unreadable.get(view, set())])
            images = (VIEW * view + rows).float()[:, None, None, None].expand(-1, 3, 2, 2)
            yield Batch(images, self.labels[rows], rows)


def make_models(*, side_info: bool = True) -> dict[str, Frozen]:
    models = {"old": Frozen(2.0), "new": Frozen(1.0), "side_info": Frozen(3.0)}
    return models if side_info else {"old": models["old"], "new": models["new"]}


def cached_pairs(
    models: dict[str, Frozen], images: Images, folder: Path | None = None, drawn_views: int | None = None
) -> PairsInMemory:
    """Pairs that keep their embeddings in `folder`, if there is one; a model is told from others by its weight."""
    cache = EmbeddingCache(folder, "", {role: str(model.weight.item()) for role, model in models.items()}, World())
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "drawn_views": drawn_views, "precision": "fp32"}
    return embedded_pairs(models, images, cache, world=World(), **options)  # type: ignore[arg-type]


def streamed_pairs(models: dict[str, Frozen], images: Images) -> StreamedPairs:
    return StreamedPairs(models, images, batch_size=BATCH, precision="fp32", world=World())  # type: ignore[arg-type]


def items_and_views(batches: Iterable[PairBatch]) -> tuple[list[int], list[int]]:
    """What was shown in `batches`; it must be the same for every model, with the item's label."""
    items, views = list[int](), list[int]()
    for batch in batches:
        shown = batch.new.squeeze(1).long()  # (B,)
        assert torch.equal(batch.old, 2 * batch.new)
        assert batch.side_info is None or torch.equal(batch.side_info, 3 * batch.new)
        assert torch.equal(batch.labels, shown % VIEW % 3)
        items += (shown % VIEW).tolist()
        views += (shown // VIEW).tolist()
    return items, views


@pytest.mark.parametrize("side_info", [False, True])
def test_cached_and_streamed_batches_hold_the_same_items_in_true_views(side_info: bool) -> None:
    models = make_models(side_info=side_info)
    cached, streamed = cached_pairs(models, Images()), streamed_pairs(models, Images())
    assert len(cached) == len(streamed) == ITEMS
    assert [model.runs for model in models.values()] == [[6, 6, 6, 2] * 2] * len(models)
    for epoch in range(4):
        found = [batch for source in (cached, streamed) for batch in source.batches(epoch)]
        assert all((batch.side_info is not None) == side_info for batch in found)
        assert all(batch.old.dtype == torch.float32 for batch in found)
        assert not any(batch.old.requires_grad or batch.old.is_inference() for batch in found)  # autograd takes it
        items, views = items_and_views(cached.batches(epoch))
        assert set(views) == {0, 1}
        expected = shuffled_batches(ITEMS, BATCH, World(), seed=0, epoch=epoch)
        assert items == torch.cat(expected).tolist()
        assert items_and_views(streamed.batches(epoch)) == (items, [epoch] * len(items))
    # The cached ones were not embedded again, the streamed ones once an epoch and again to look at them.
    assert [model.runs for model in models.values()] == [[6, 6, 6, 2] * 2 + [6, 6, 6] * 8] * len(models)


def test_both_views_are_drawn_about_equally_and_anew_every_epoch() -> None:
    pairs, used = cached_pairs(make_models(), Images()), cached_pairs(make_models(), Images())
    drawn = [items_and_views(used.batches(epoch)) for epoch in range(30)]
    # 18 items in each of 30 epochs: 270 mirrored, with a standard deviation of 11.6.
    assert abs(sum(sum(views) for _, views in drawn) - 270) < 50
    assert len({tuple(views) for _, views in drawn}) == 30
    assert items_and_views(pairs.batches(17)) == drawn[17]  # a function of the epoch alone


def test_processes_share_the_batches_that_one_process_has() -> None:
    pairs = cached_pairs(make_models(), Images())
    alone = list(pairs.batches(1))
    shares = []
    for rank in range(2):
        pairs.world = World(rank, 2)
        shares.append(list(pairs.batches(1)))
    for batch, *parts in zip(alone, *shares, strict=True):
        for name in PairBatch._fields:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@pytest.mark.parametrize("size", [1, 2])
def test_every_view_once_over_all_processes(size: int) -> None:
    pairs, batches = cached_pairs(make_models(), Images()), list[PairBatch]()
    for rank in range(size):
        pairs.world = World(rank, size)
        batches += pairs.views_once()
    assert all(len(batch.labels) <= BATCH for batch in batches)
    items, views = items_and_views(batches)
    assert sorted(zip(views, items, strict=True)) == [(view, item) for view in range(2) for item in range(ITEMS)]


def test_a_model_in_two_places_runs_once() -> None:
    model = Frozen(4.0)
    pairs = cached_pairs({"old": model, "new": model}, Images(1))
    assert sum(model.runs) == ITEMS
    assert torch.equal(pairs.views[0].embeddings["old"], pairs.views[0].embeddings["new"])


def test_drawn_views_take_turns_and_are_those_of_the_first_epochs() -> None:
    models = make_models()
    pairs = cached_pairs(models, Images(None), drawn_views=2)
    epochs = [items_and_views(pairs.batches(epoch)) for epoch in range(4)]
    assert [sum(model.runs) for model in models.values()] == [2 * ITEMS] * 3
    for epoch, (items, views) in enumerate(epochs):
        assert len(set(items)) == 18  # the last batch of an epoch is not full, and is left out
        assert set(views) == {epoch % 2}
    assert epochs[0] != epochs[2]  # the same views, shuffled anew


@pytest.mark.parametrize("drawn_views", [None, 2])
@pytest.mark.parametrize("unreadable", [{}, {0: {3, 19}, 1: {0, 3}}])
def test_what_is_held_out_is_in_no_view(drawn_views: int | None, unreadable: dict[int, set[int]]) -> None:
    """Also where the batches do not divide the items, and where an image is unreadable in one of the views."""
    pairs = cached_pairs(make_models(), Images(None if drawn_views else 2, unreadable), drawn_views=drawn_views)
    readable = set(range(ITEMS)) - set().union(*unreadable.values())
    assert len(pairs) == len(readable)
    held, of_view = items_and_views([pairs.set_aside(0.25)])
    assert held == sorted(set(held))
    assert len(held) == round(0.25 * len(readable))
    assert set(of_view) == {0}
    kept = readable - set(held)
    assert sorted(items_and_views(pairs.views_once())[0]) == sorted(2 * list(kept))
    assert set().union(*(items_and_views(pairs.batches(epoch))[0] for epoch in range(6))) == kept


# ------------------------------------------------------------------------------------------------------------- on disk


def config_in(folder: Path, **values: Any) -> TransformationConfig:
    """A config whose files are in `folder`, with stand-ins for the two model files and the images."""
    paths = {f"{role}_model_path": str(folder / f"{role}.pt") for role in ("old", "new")}
    for path in paths.values():
        Path(path).write_text(path)
    output = {"output_transformation_path": str(folder / "h.pt")}
    config = build(TransformationConfig, {**parse_yaml(TRANSFORMATION), **paths, **output, **values}, source="tiny")
    config.dataset_params.data_root = str(folder / "data")
    (folder / "data" / "training").mkdir(parents=True)
    for name in ("0.png", "1.png"):
        (folder / "data" / "training" / name).touch()
    return config


@pytest.mark.parametrize(
    ("num_views", "values", "kind", "said"),
    [
        (2, {}, PairsInMemory, "once: all 2 views of each image"),
        (2, {"cache_embeddings": "memory"}, PairsInMemory, "once: all 2 views of each image"),
        (2, {"cache_embeddings": "off"}, StreamedPairs, "every epoch"),
        (None, {}, StreamedPairs, "every epoch"),
        (None, {"cached_views": 3}, PairsInMemory, "once: 3 randomly drawn views of each image"),
    ],
)
def test_few_views_or_as_many_as_are_asked_for_are_cached_unless_it_is_off(
    tmp_path: Path,
    num_views: int | None,
    values: dict[str, Any],
    kind: type,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_in(tmp_path, **values)
    images: Any = Images(num_views)
    models = make_models(side_info=False)
    assert type(build_pairs(models, images, config, "fp32", World(), hashes=dict.fromkeys(models, ""))) is kind
    assert f"embedding {said}" in capsys.readouterr().out
    kept = kind is PairsInMemory and config.cache_embeddings == "auto"
    assert (tmp_path / "embeddings").exists() == kept


def embedded_anew(folder: Path, **changed: float) -> set[str]:
    """The roles of the models that run where embeddings are kept in `folder`."""
    models = {**make_models(), **{role: Frozen(weight) for role, weight in changed.items()}}
    cached_pairs(models, Images(1), folder)
    return {role for role, model in models.items() if model.runs}


def test_embeddings_on_disk_serve_the_next_run_and_models_that_are_new_to_them(tmp_path: Path) -> None:
    first, second = (cached_pairs(make_models(), Images(1), tmp_path) for _ in range(2))
    torch.testing.assert_close(second.views, first.views, rtol=0, atol=0)
    assert first.views[0].embeddings["old"].dtype == torch.float16
    assert embedded_anew(tmp_path) == set()
    assert embedded_anew(tmp_path, new=5.0) == {"new"}


def test_damaged_embeddings_are_made_anew(tmp_path: Path) -> None:
    embedded_anew(tmp_path)
    (file, *_) = sorted(tmp_path.glob("*/embeddings.npy"))
    file.write_bytes(file.read_bytes()[:50])
    assert len(embedded_anew(tmp_path)) == 1
    assert embedded_anew(tmp_path) == set()


def test_embeddings_of_fewer_images_are_not_mixed_in(tmp_path: Path) -> None:
    embedded_anew(tmp_path)
    (folder, *_) = tmp_path.iterdir()
    for file in folder.iterdir():
        np.save(file, np.load(file)[1:])
    with pytest.raises(UserError, match=f"embeddings_dir: {tmp_path} was filled while other images"):
        embedded_anew(tmp_path)


def test_other_data_another_transform_or_arithmetic_is_embedded_anew(tmp_path: Path) -> None:
    config = config_in(tmp_path)

    def source(precision: Any = "fp32", **changed: Any) -> str:
        params = replace(config.dataset_params, **changed)
        return EmbeddingCache.of(params, {}, tmp_path, precision, World()).source

    before = source()
    assert source(num_workers=0) == before
    assert len({before, source("bf16"), source(image_size=32), source(augmentation="none"), source(num_classes=1)}) == 5
    image = tmp_path / "data" / "training" / "0.png"
    image.touch()
    touched = source()
    image.unlink()
    assert len({before, touched, source()}) == 3


def test_of_a_list_its_training_images_tell_what_is_kept(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    images = sorted((tmp_path / "data" / "training").rglob("*.png"))
    path = tmp_path / "list.csv"
    params = replace(config.dataset_params, name="list", list_path=str(path), data_root=str(tmp_path))

    def source(*, unread: str = "", count: int = len(images)) -> str:
        rows = [f"{image},0,training" for image in images[:count]]
        path.write_text("\n".join(["path,label,split", *rows, unread]))
        return EmbeddingCache.of(params, config.model_paths, tmp_path, "fp32", World()).source

    before = source()
    assert source(unread="other.png,1,validation") == before
    assert source(count=len(images) - 1) != before
    images[0].touch()
    assert source() != before


@settings(deadline=None)
@given(exponent=st.floats(-12, 12), seed=st.integers(0, 99))
def test_rounding_stays_within_its_tolerance_at_any_scale(exponent: float, seed: int) -> None:
    embeddings = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    change = (rounded(embeddings).float() - embeddings).norm(dim=1)
    assert (change <= HALF_TOLERANCE * embeddings.norm(dim=1)).all()
    if -3 < exponent < 3:
        assert rounded(embeddings).dtype == torch.float16
