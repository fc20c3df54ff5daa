"""Images in a list, by the commands of docs/image_lists.md: people seen by two cameras, queries apart from the gallery.

At 32 px, with networks of ours; `pytest tests/end_to_end/test_image_lists.py --image-size 224` is the same with two of
torchvision, a ResNet18 that gives way to a ConvNeXt.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.embeddings import EmbeddingSet, read_embeddings
from tests.end_to_end.conftest import evaluate
from tests.retrieval.oracle import mean_figures, rank_slowly
from tests.tiny import fail, state_of, succeed

TRAINED, SEEN, CAMERAS, IMAGES = 6, 10, 2, 3  # people to train on, people, cameras, images of each by each
HEADING = "path,label,split,camera,group"

DATA = """
dataset_params:
  name: list
  list_path: people.csv
  data_root: images
  training_split: train
  batch_size: 12
  image_size: SIZE
  num_workers: 0
"""
BACKBONE = """
base: data.yaml
arch_params: {arch: ARCH, num_classes: 6, embedding_dim: 16MORE}
optimizer_params: {algorithm: sgd, lr: 0.1}
lr_policy_params: {warmup_length: 0}
epochs: 2
validate_every: 0
output_model_path: checkpoints/new.pt
"""
TRANSFORMATION = """
base: data.yaml
old_model_path: checkpoints/old.pt
new_model_path: checkpoints/new.pt
arch_params: {arch: fastfill, inner_dim: 32}
optimizer_params: {algorithm: adam, lr: 1e-2}
dataset_params: {augmentation: flip}
lr_policy_params: {warmup_length: 0}
objective_params:
  discriminative_loss: {name: LabelSmoothing}
  uncertainty_loss: {mu_uncertainty: 0.5}
epochs: 3
output_transformation_path: checkpoints/h.pt
output_transformed_old_model_path: checkpoints/transformed.pt
"""
EVALUATION = """
base: data.yaml
query_model_path: checkpoints/new.pt
gallery_model_path: checkpoints/transformed.pt
eval_params: {query_split: query, gallery_split: gallery, backfilling: 2, backfilling_list: [sigma, confidence]}
"""
EMBEDDING = """
base: data.yaml
model_path: checkpoints/new.pt
output_embeddings_path: new_query.npz
"""
FILES = """
eval_params: {backfilling: 2, backfilling_list: [sigma]}
embeddings_params: {query: new_query.npz, gallery: old_gallery.npz, new_gallery: new_gallery.npz, transformation: h.pt}
"""


TWO_FIELDS = (
    "eval_params={two_fields: standardised, backfilling: 2, query_split: query, gallery_split: gallery}",
    "gallery_model_path=checkpoints/old.pt",
)


def write_people(folder: Path, size: int) -> None:
    """JPEGs of colours that are a person's own, in rooms that are a camera's, and the list of them."""
    random, rows = np.random.default_rng(0), [HEADING]
    clothes, rooms = random.uniform(0, 255, (SEEN, 4, 4, 3)), random.uniform(-40, 40, (CAMERAS, 4, 4, 3))
    (folder / "images").mkdir()
    for person in range(SEEN):
        for camera in range(CAMERAS):
            for number in range(IMAGES):
                split = "train" if person < TRAINED else "gallery" if number else "query"
                name = f"{person}_c{camera}_{number}.jpg"
                pixels = clothes[person] + rooms[camera] + random.normal(0, 15, (4, 4, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((size * 5 // 4, size * 9 // 8))
                image.save(folder / "images" / name, quality=90)
                rows.append(f"{name},person {person},{split},c{camera},{'day' if number % 2 else 'night'}")
    last = SEEN - 1
    rows.append(f"{last}_c0_1.jpg,person {last},query,c1,day")  # an item of the gallery, said to be by another camera
    rows.append(f"{last}_c0_2.jpg,person 99,query,c1,day")  # whom no other image shows
    (folder / "people.csv").write_text("\r\n".join(rows))


def write_configs(folder: Path, size: int) -> None:
    arch, more = ("ResNet18", ", stem: cifar, width: 0.125") if size < 64 else ("torchvision/convnext_tiny", "")
    texts = {
        "data": DATA.replace("SIZE", str(size)),
        "backbone": BACKBONE.replace("ARCH", arch).replace("MORE", more),
        "transformation": TRANSFORMATION,
        "eval": EVALUATION,
        "embed": EMBEDDING,
        "files": FILES.replace("h.pt", "checkpoints/h.pt"),
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder with the images, the list, the configs and the models; not to be written to."""
    folder, size = tmp_path_factory.mktemp("people"), pytestconfig.getoption("--image-size")
    write_people(folder, size)
    write_configs(folder, size)
    old = ["dataset_params.num_classes=3", "output_model_path=checkpoints/old.pt"]
    old += [] if size < 64 else ["arch_params={arch: torchvision/resnet18, num_classes: 6, embedding_dim: 16}"]
    succeed("train_backbone.py", "--config", "backbone.yaml", *old, cwd=folder, processes=None)
    succeed("train_backbone.py", "--config", "backbone.yaml", cwd=folder, processes=None)
    succeed("train_transformation.py", "--config", "transformation.yaml", cwd=folder, processes=None)
    return folder


@pytest.fixture
def work(people: Path, tmp_path: Path) -> Path:
    """A folder of the test's own, with everything that `people` has."""
    return shutil.copytree(people, tmp_path / "work")


def figures(query: EmbeddingSet, gallery: EmbeddingSet) -> dict[str, float]:
    """Those of a loop over the queries in embedding files, without matches by their own camera."""
    assert query.labels is not None
    assert query.ids is not None
    assert gallery.ids is not None
    number = {name: place for place, name in enumerate([*query.ids, *gallery.ids])}
    return mean_figures(
        rank_slowly(
            query.embeddings,
            gallery.embeddings,
            query.labels,
            gallery.labels,
            torch.tensor([number[name] for name in query.ids]),
            torch.tensor([number[name] for name in gallery.ids]),
            query_cameras=query.cameras,
            gallery_cameras=gallery.cameras,
        )
    )


def test_queries_and_gallery_are_the_splits_and_own_cameras_are_ignored(work: Path) -> None:
    result = evaluate(work, "eval_params.embeddings_output_dir=kept", "eval_params.per_class=true")
    assert (result["num_queries"], result["num_skipped"]) == ((SEEN - TRAINED) * CAMERAS + 1, 1)
    assert result["num_gallery"] == (SEEN - TRAINED) * CAMERAS * (IMAGES - 1)
    query, gallery, new = (
        read_embeddings(work / "kept" / f"{name}.npz", where="") for name in ("query", "gallery", "new_gallery")
    )
    assert result["metrics"] == pytest.approx(figures(query, gallery), abs=1e-6)
    end = {name: values[-1] for name, values in result["backfilling"]["sigma"].items() if name in result["metrics"]}
    backfilled = replace(gallery, embeddings=new.embeddings)
    assert end == pytest.approx(figures(query, backfilled), abs=1e-6)
    assert {of["name"] for of in result["per_class"].values()} == {f"person {n}" for n in range(TRAINED, SEEN)}
    assert min(map(int, result["per_class"])) == TRAINED  # after those of training
    one_camera = work / "people.csv"
    one_camera.write_text(one_camera.read_text().replace("camera", "seen_by"))
    assert evaluate(work)["metrics"] != result["metrics"]


def test_groups_of_queries_are_those_of_the_list(work: Path) -> None:
    kept = ("eval_params.embeddings_output_dir=kept", "eval_params.groups={column: true}")
    result = evaluate(work, *kept)
    query, gallery = (read_embeddings(work / "kept" / f"{name}.npz", where="") for name in ("query", "gallery"))
    assert query.ids is not None
    by_night = torch.tensor([name.endswith("_0.jpg") for name in query.ids])
    assert {name: group["num_queries"] for name, group in result["groups"].items()} == {"day": 1, "night": 8}
    night = {name: result["groups"]["night"][name] for name in result["metrics"]}
    assert night == pytest.approx(figures(query.take(by_night.nonzero()[:, 0]), gallery), abs=1e-6)
    (work / "people.csv").write_text((work / "people.csv").read_text().replace("group", "light"))
    refused = fail("eval.py", "--config", "eval.yaml", "eval_params.groups={column: true}", cwd=work, processes=None)
    assert "eval_params.groups.column: the queries are of no image list with a column `group`" in refused


def test_embedded_and_evaluated_from_files_the_figures_are_the_same(work: Path) -> None:
    for model, split in (("new", "query"), ("new", "gallery"), ("old", "gallery")):
        output = f"output_embeddings_path={model}_{split}.npz"
        arguments = (f"model_path=checkpoints/{model}.pt", f"split={split}", output)
        succeed("embed.py", "--config", "embed.yaml", *arguments, cwd=work, processes=None)
    refused = fail(
        "embed.py",
        "--config",
        "embed.yaml",
        "split=query",
        "output_embeddings_path=a.safetensors",
        cwd=work,
        processes=None,
    )
    assert "a.safetensors cannot hold the ids of the images, which are texts; use .parquet or .npz" in refused
    ids = read_embeddings(work / "new_query.npz", where="").ids
    assert ids is not None
    assert ids[0] == f"{TRAINED}_c0_0.jpg"
    from_images = evaluate(work, "eval_params.backfilling_list=[sigma]")
    from_files = evaluate(work, config="files.yaml")
    assert from_files["num_skipped"] == 1
    assert from_files["metrics"] == pytest.approx(from_images["metrics"], abs=1e-4)
    curves = (result["backfilling"]["sigma"]["map"] for result in (from_images, from_files))
    assert next(curves) == pytest.approx(next(curves), abs=1e-4)
    refused = fail("eval.py", "--config", "files.yaml", "embeddings_params.new_gallery=null", cwd=work, processes=None)
    assert "needs queries and gallery of the same items, or embeddings_params.new_gallery" in refused


def test_one_split_is_queries_and_gallery(work: Path) -> None:
    same = evaluate(work, "eval_params={query_split: gallery, gallery_split: gallery}")
    assert same["num_queries"] == same["num_gallery"] == (SEEN - TRAINED) * CAMERAS * (IMAGES - 1)
    assert evaluate(work, "eval_params={}", "dataset_params.validation_split=gallery")["metrics"] == same["metrics"]


def test_a_gallery_of_one_image_of_each_person(work: Path) -> None:
    rows = (work / "people.csv").read_text().splitlines()
    kept = [row for row in rows if ",gallery," not in row or "_c1_1.jpg" in row]
    (work / "people.csv").write_text("\n".join(kept))
    result = evaluate(work)
    assert (result["num_gallery"], result["num_queries"]) == (SEEN - TRAINED, SEEN - TRAINED)  # those by camera 0
    assert list(result["risk_coverage"]["sigma"]) == ["alignment_error"]


def test_a_model_is_of_the_rows_of_training_alone(work: Path) -> None:
    """Rows of splits that are not read change nothing about a model."""
    before = state_of(work / "checkpoints" / "new.pt")
    rows = (work / "people.csv").read_text().splitlines()
    unread = [row for row in rows if ",train," in row or row == HEADING]
    (work / "people.csv").write_text("\n".join(unread))
    succeed("train_backbone.py", "--config", "backbone.yaml", "output_model_path=again.pt", cwd=work, processes=None)
    assert all(torch.equal(weights, before[name]) for name, weights in state_of(work / "again.pt").items())


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ((), ("eval_params.query_split=qery",), "unknown 'qery'; did you mean query? (choices: gallery, query, train)"),
        (("label,split", "lable,split"), (), "has no column `label`; is it `lable`? (columns: path, lable, split"),
        (("7_c0_1.jpg", "seven.jpg"), (), "1 of 16 images are not there, the first is images/seven.jpg"),
        ((",query,c0", ",query,"), (), "its column `camera` is empty in 4 rows, first in row 37"),
        ((",query,c0", ",query,"), ("eval_params.backfilling=null",), "its column `camera` is empty in 4 rows"),
        (("7_c0_1.jpg", "7_c0_2.jpg"), (), "the split gallery: its column `path` has 1 values more than once"),
        (("camera,group", "camera,id"), (), "query: its column `id` has 2 values more than once, the first is night"),
        ((), ("dataset_params.list_path=null",), "list_path: is the file of name: list; give both, or neither"),
        ((), ("dataset_params.std=[1, 0, 1]",), "std: should be three numbers, for red, green and blue, above 0 each"),
        ((), TWO_FIELDS, "two_fields: needs queries and gallery of the same items, without cameras"),
    ],
)
def test_refused_by_an_evaluation(work: Path, change: Any, arguments: tuple[str, ...], message: str) -> None:
    if change:
        (work / "people.csv").write_text((work / "people.csv").read_text().replace(*change))
    assert message in fail("eval.py", "--config", "eval.yaml", *arguments, cwd=work, processes=None)


def test_cameras_of_one_set_alone(work: Path) -> None:
    rows = [row.split(",") for row in (work / "people.csv").read_text().splitlines()]
    of_one = [[*row[:3], "" if row[2] == "query" else row[3], row[4]] for row in rows]
    (work / "people.csv").write_text("\n".join(map(",".join, of_one)))
    message = "cameras: those of the gallery are given, and not those of the queries; give both"
    assert message in fail("eval.py", "--config", "eval.yaml", cwd=work, processes=None)


def test_the_same_in_folders(work: Path) -> None:
    """Splits of other names, and classes of the query and gallery folders that training has not seen."""
    for row in (work / "people.csv").read_text().splitlines()[1:-2]:
        name, person, split, *_ = row.split(",")
        image = work / "folders" / split / person / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.symlink_to(work / "images" / name)
    shared = "training_split: train, validation_split: gallery, num_workers: 0, batch_size: 12, image_size: 16"
    data = f"dataset_params={{name: folder, data_root: folders, {shared}}}"
    arch = "arch_params={arch: ResNet18, num_classes: 6, embedding_dim: 16, stem: cifar, width: 0.125}"
    train = ("train_backbone.py", "--config", "backbone.yaml", arch, data, "output_model_path=of_folders.pt")
    message = "folders/gallery holds no image of the classes of the training split; to train without validation"
    assert message in fail(*train, "validate_every=1", cwd=work, processes=None)
    succeed(*train, cwd=work, processes=None)
    models = ("query_model_path=of_folders.pt", "gallery_model_path=of_folders.pt")
    result = evaluate(work, data, *models, "eval_params={query_split: query, per_class: true}")
    assert (result["num_gallery"], result["num_queries"]) == (16, 8)
    assert [(label, of["name"]) for label, of in result["per_class"].items()] == [
        (str(TRAINED + place), f"person {TRAINED + place}") for place in range(SEEN - TRAINED)
    ]
    message = "data_root: folders: split: unknown 'qery'; did you mean query? (choices: gallery, query, train)"
    assert message in fail(
        "eval.py", "--config", "eval.yaml", data, *models, "eval_params={query_split: qery}", cwd=work, processes=None
    )


def test_training_refuses_what_it_cannot_train_on(work: Path) -> None:
    train = ("train_backbone.py", "--config", "backbone.yaml", "output_model_path=none.pt")
    message = "the split gallery holds no image of the classes of the training split; to train without validation"
    of_others = ("validate_every=1", "dataset_params.validation_split=gallery")
    assert message in fail(*train, *of_others, cwd=work, processes=None)
    text = (work / "people.csv").read_text()
    (work / "people.csv").write_text(text.replace("0_c0_0.jpg", "gone.jpg").replace("1_c0_0.jpg", "lost.jpg"))
    assert "2 of 36 images are not there, the first is images/gone.jpg" in fail(*train, cwd=work, processes=None)
    (work / "people.csv").write_text(text)
    held_out = ("dataset_params.held_out=0.3", "validate_every=1", "epochs=1")
    assert "validation accuracy" in succeed(*train, *held_out, cwd=work, processes=None)
