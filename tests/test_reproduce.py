"""reproduce.py as a user runs it, over scripts of a few lines."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.embeddings import EmbeddingSet
from data.folders import ImageList
from suites.reproduction import as_arrays
from suites.stages import content_of
from tests.suites.fake_suite import write_suite
from tests.tiny import REPOSITORY

OUTPUTS = ["report.md", "seed_4.json", "backfilling.png", "retrieval_examples.png"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_suite(tmp_path)
    shutil.copy(REPOSITORY / "reproduce.py", tmp_path)  # so that it finds the fake scripts beside it
    return tmp_path


def run(root: Path, *overrides: str) -> int:
    """Run reproduce.py in this process; returns its exit code."""
    content_of.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["reproduce.py", "--config", "configs/suite.yaml", *overrides])
        try:
            runpy.run_path(str(root / "reproduce.py"), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def test_a_suite_from_nothing_to_its_report_and_again(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, "overrides.seed=4") == 0
    output = capfd.readouterr().out
    assert "[4/7] h: running\n[4/7] h: done in " in output
    assert "| FCT new/old | no        | random | 45.0" in output
    folder = root / "results" / "fake"
    results = json.loads((folder / "seed_4.json").read_text())
    assert results["command"] == "python reproduce.py --config configs/suite.yaml overrides.seed=4"
    assert results["seed"] == 4
    assert (folder / "report.md").read_text().startswith("# A fake suite\n")
    for name in OUTPUTS[2:]:
        with Image.open(folder / name) as image:
            image.verify()
    before = {name: (folder / name).read_bytes() for name in OUTPUTS}
    assert run(root, "overrides.seed=4") == 0
    assert capfd.readouterr().out.count(": up to date\n") == 7
    assert {name: (folder / name).read_bytes() for name in OUTPUTS} == before


def test_a_suite_of_several_seeds(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, "seeds=[2,5]", "stages.old.once=true", "stages.new.once=true") == 0
    output = capfd.readouterr().out
    assert "[8/9] h, seed 5: running\n" in output
    assert "| FCT new/old | no        | random | 45.0 ± 0.0" in output
    folder = root / "results" / "fake"
    assert [json.loads((folder / f"seed_{seed}.json").read_text())["seed"] for seed in (2, 5)] == [2, 5]
    seeds = "- Seeds: 2, 5; once, with seed 2, for all: data, old, new, eval_old_old, eval_new_new\n"
    assert seeds in (folder / "report.md").read_text()


def test_images_that_have_ids_are_shown_by_their_places() -> None:
    items = EmbeddingSet(torch.eye(2), np.array(["b.jpg", "a.jpg"]), torch.tensor([1, 0]))
    for ids, places in ((np.array(["a.jpg", "b.jpg"]), [1, 0]), (None, ["b.jpg", "a.jpg"])):
        listed = ImageList([Path("a.jpg"), Path("b.jpg")], [0, 1], ["x", "y"], ids=ids)
        assert as_arrays(items, listed).ids.tolist() == places


def test_a_report_elsewhere_and_none_of_a_part(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, "only=[data,old]") == 0
    assert capfd.readouterr().out.endswith("only data, old: done; the report needs every stage, so none is written\n")
    assert not (root / "results" / "fake" / "report.md").exists()
    assert run(root, "report=docs/mine.md", "plot=areas", "examples=null") == 0
    report = (root / "docs" / "mine.md").read_text()
    assert "](mine_backfilling.png)" in report
    assert "retrieval_examples" not in report
    assert sorted(path.name for path in (root / "docs").iterdir()) == ["mine.md", "mine_backfilling.png"]
    assert (root / "results" / "fake" / "seed_0.json").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (75, "stage old was stopped by SIGTERM; run the same command again to go on\n"),
        (2, "error: stage old failed (exit code 2); train_backbone.py says why above\n"),
    ],
)
def test_a_stage_that_fails_or_is_preempted_ends_it_with_one_line_and_the_code(
    root: Path, code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / "train_backbone.fails").write_text(str(code))
    assert run(root) == code
    assert capfd.readouterr().err == message
    assert not (root / "results" / "fake" / "report.md").exists()


def test_a_mistake_in_the_suite_is_one_line(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, "overrides.epoch=1") == 2
    assert capfd.readouterr().err == (
        "error: suite fake: overrides.epoch: no stage's config has this key; did you mean `overrides.epochs`?\n"
    )


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        (signal.SIGINT, 130, "interrupted; run the same command again to go on\n"),
        (signal.SIGTERM, 75, "stopped by SIGTERM before the suite was done; run the same command again\n"),
        pytest.param(signal.SIGKILL, -9, "", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")),
    ],
)
def test_an_interrupt_ends_it_and_its_stage(root: Path, sent: signal.Signals, code: int, message: str) -> None:
    """Ctrl-C goes to every process of the terminal; a scheduler's SIGTERM, or SIGKILL, to one."""
    (root / "train_backbone.hangs").touch()
    process = start(root)
    (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
    _, errors = process.communicate(timeout=30)  # its pipe closes only when the stage, of 60 s, is gone too
    assert process.returncode == code
    assert errors.endswith(message)
    record = json.loads((root / "results" / "fake" / "stages" / "old.record.json").read_text())
    assert record["status"] == "started"


def test_sigterm_leaves_a_stage_the_time_for_its_checkpoint(root: Path) -> None:
    script = root / "train_backbone.py"
    script.write_text(TRAINING + script.read_text())
    process = start(root)
    process.terminate()
    time.sleep(0.2)
    process.terminate()  # as schedulers do that insist
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    assert (root / "checkpoint").read_text() == "whole"


TRAINING = """
import signal, sys, time
def write_checkpoint(*_):
    time.sleep(1)
    open("checkpoint", "w").write("whole")
    sys.exit(75)
signal.signal(signal.SIGTERM, write_checkpoint)
open("calls.jsonl", "a").write("train_backbone")
time.sleep(60)
"""


def start(root: Path) -> subprocess.Popen[str]:
    """Start the suite, and wait until its first training is at work."""
    command = [sys.executable, "reproduce.py", "--config", "configs/suite.yaml"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As a terminal starts it, even where the tests themselves run in the background, which ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    calls = root / "calls.jsonl"
    deadline = time.monotonic() + 60
    while not (calls.exists() and "train_backbone" in calls.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process
