"""Two processes, by torchrun or started by the script itself, on CPUs with gloo, do what one does."""

from pathlib import Path

import pytest

from models.model_files import load_model
from models.resnet import ResNet
from tests.end_to_end.conftest import log_of, result_of
from tests.tiny import run_script, succeed

FIGURES = ["cmc_top1", "cmc_top5", "map"]


def test_two_processes_evaluate_to_the_figures_of_one(trained: Path, evaluated: Path, work: Path) -> None:
    """With twice the batch over both, each image is embedded in a batch of the same images as by one process."""
    arguments = ["--config", "eval.yaml", "--output", "result.json", "dataset_params.batch_size=16"]
    table = succeed("eval.py", *arguments, cwd=work, processes=2)
    assert table.count("AUC, sigma order") == 1
    one, two = result_of(evaluated), result_of(work)
    assert two["num_queries"] == one["num_queries"]
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-12)
    for order, curve in one["backfilling"].items():
        for name in FIGURES:
            assert two["backfilling"][order][name] == pytest.approx(curve[name], abs=1e-12)


def test_a_script_that_starts_itself_twice_trains_one_model(work: Path) -> None:
    arguments = ["--config", "backbone.yaml", "output_model_path=two.pt", "processes=2"]
    output = succeed("train_backbone.py", *arguments, cwd=work)
    first, *_ = output.splitlines()
    assert first.startswith("on ")
    assert first.endswith((", 2 processes, fp32", ", 2 processes, bf16"))
    assert output.count("on ") - output.count("validation ") == 1
    assert output.count("model: two.pt") == 1
    log = log_of(work, "two")
    assert [record["epoch"] for record in log] == [1, 2]
    assert log[1]["loss"] < log[0]["loss"]
    assert isinstance(load_model(work / "two.pt"), ResNet)
    assert {path.name for path in work.glob("*two*")} == {"two.pt", "two.config.yaml", "two.log.jsonl"}


def test_a_batch_that_the_processes_do_not_divide_is_refused(work: Path) -> None:
    arguments = ["--config", "backbone.yaml", "output_model_path=two.pt", "dataset_params.batch_size=33"]
    done = run_script("train_backbone.py", *arguments, cwd=work, processes=2)
    assert done.returncode != 0
    assert (
        "error: dataset_params.batch_size: 33 is the batch over all processes and cannot be divided by 2" in done.stderr
    )
    assert not list(work.glob("*two*"))
