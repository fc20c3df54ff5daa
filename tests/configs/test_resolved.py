"""The short configs resolve to what the long ones said: `resolved.json` holds the hashes of those, made before them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.configs.resolved import ROOT, hash_of, of_files, of_stages, schema_of
from utils.config import build, merge, read_config

BEFORE = json.loads(Path(__file__).with_name("resolved.json").read_text(encoding="utf-8"))
OLD, NEW, BCT = (f"checkpoints/cifar100_32px_{name}.pt" for name in ("old", "new", "new_bct"))
# Files that have gone and are no stage of a suite: the file that is left, and what to say on the command line.
MOVED: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings_transformation.yaml": ("fit_embeddings.yaml", {}),
    "cifar100_32px_backbone_new_bct.yaml": (
        "cifar100_32px_backbone_new.yaml",
        {"bct_params": {"old_model_path": OLD, "weight": 1}, "output_model_path": BCT},
    ),
    "cifar100_32px_eval_new_new_bct.yaml": (
        "cifar100_32px_eval_old_old.yaml",
        {"query_model_path": BCT, "gallery_model_path": BCT},
    ),
    "cifar100_32px_eval_old_new_bct.yaml": ("cifar100_32px_eval_old_old.yaml", {"query_model_path": BCT}),
    "cifar100_32px_eval_old_new_refined.yaml": (
        "cifar100_32px_eval_old_old.yaml",
        {
            "query_model_path": NEW,
            "gallery_model_path": "checkpoints/cifar100_32px_old_refined_transformed.pt",
            "eval_params": {
                "representatives": "auto",
                "backfilling": 20,
                "backfilling_list": [
                    "auto",
                    "confidence",
                    "sigma",
                    "entropy",
                    "class_distance",
                    "knn_disagreement",
                    "random",
                    "distance",
                    "oracle",
                ],
            },
        },
    ),
    "cifar100_32px_embed.yaml": (
        "cifar100_embed.yaml",
        {
            "model_path": NEW,
            "dataset_params": {"image_size": 32},
            "output_embeddings_path": "embeddings/cifar100_32px_new_training",
            "output_classifier_path": "embeddings/cifar100_32px_new_classifier.npy",
        },
    ),
    "glyphs_upgrade_eval.yaml": (
        "cifar100_files_eval.yaml",
        {"embeddings_params": {"query": "embeddings/glyphs_new_validation.npz", "gallery": "upgraded/glyphs"}},
    ),
}


def test_every_stage_of_every_suite_is_what_it_was() -> None:
    stages = dict(of_stages())
    assert {label: stages.get(label) for label in BEFORE["stages"]} == BEFORE["stages"]


def test_every_file_is_what_it_was_or_a_stage_of_a_suite_or_a_command() -> None:
    files, stages = dict(of_files()), set(dict(of_stages()).values())
    for name, expected in BEFORE["files"].items():
        if name in files:
            assert files[name] == expected, name
        elif name in MOVED:
            path, overrides = MOVED[name]
            values = merge(read_config(ROOT / "configs" / path), overrides)
            assert hash_of(build(schema_of(values), values, source=path)) == expected, name
        else:
            assert expected in stages, name


def test_the_hash_tells_one_value_from_another() -> None:
    values = read_config(ROOT / "configs" / "cifar100_backbone_old.yaml")
    other = merge(values, {"optimizer_params": {"lr": 1.025}})
    hashes = {hash_of(build(schema_of(each), each, source="x")) for each in (values, other)}
    assert len(hashes) == 2


@pytest.mark.parametrize("name", ["cifar100", "imagenet"])
def test_the_published_recipes_are_complete_without_a_base(name: str) -> None:
    for run in ("backbone_old", "backbone_new", "fct_transformation", "fastfill_transformation"):
        assert "\nbase:" not in (ROOT / "configs" / f"{name}_{run}.yaml").read_text(encoding="utf-8")
    for run in ("old_old", "new_new", "old_new_fct", "old_new_fastfill"):
        assert "\nbase:" not in (ROOT / "configs" / f"{name}_eval_{run}.yaml").read_text(encoding="utf-8")
