"""A training in slices: it goes on where the slice before ended, and a dry run says how many there will be."""

import re
import sys
from pathlib import Path

import pytest
import torch

from models import build_backbone
from suites.slices import main, run_slice
from tests.tiny import BACKBONE, REPOSITORY, write_images
from tests.trainers.test_loop import fit, log_of, small_resnet
from trainers.backbone.config import BackboneConfig
from utils.config import build, parse_yaml
from utils.errors import UserError
from utils.parts import KEPT, join, split, write_rounded

CIFAR100 = [f"--config={REPOSITORY}/configs/cifar100_backbone_old.yaml", "--dry-run", "--images", "25000"]
# Ends as a training that is told to, with a checkpoint; and with a model, where there was one.
SCRIPT = """
import shutil, signal, sys, time
from pathlib import Path
checkpoint, made = Path("checkpoints/new.checkpoint.pt"), Path(__file__).parent
def stop(*_):
    checkpoint.parent.mkdir()
    shutil.copy(made / "a_checkpoint.pt", checkpoint)
    sys.exit(75)
if checkpoint.exists():
    shutil.copy(made / "a_model.pt", "checkpoints/new.pt")
    checkpoint.unlink()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
time.sleep(60)
"""


def test_slices_follow_each_other_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On machines that have nothing but what the slice before has left."""
    config = build(BackboneConfig, parse_yaml(BACKBONE), source="backbone.yaml")
    script, folder = tmp_path / "script.py", tmp_path / "slices"
    script.write_text(SCRIPT)
    weights = {"w": torch.full((5000,), 1 / 3)}
    torch.save({"state": {"model": weights, "optimizer": {"state": {}}}}, tmp_path / "a_checkpoint.pt")
    torch.save({"state_dict": weights}, tmp_path / "a_model.pt")
    left = []
    for number, code in enumerate((75, 0, 0)):
        machine = tmp_path / str(number)
        machine.mkdir()
        monkeypatch.chdir(machine)
        assert run_slice(config, [sys.executable, str(script)], folder, seconds=3 if code else 60) == code
        left.append({path.name for path in folder.iterdir()})
    of_checkpoint = {"new.checkpoint.pt.000", "new.checkpoint.pt.json"}
    assert left == [of_checkpoint, {"new.pt.000", "new.pt.json"}, {"new.pt.000", "new.pt.json"}]
    found = torch.load(machine / "checkpoints" / "new.pt")["state_dict"]["w"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), weights["w"], rtol=2**-8, atol=0)


def test_a_training_goes_on_from_rounded_weights(tmp_path: Path) -> None:
    """Its epochs and its log are those of one that was not interrupted, and its losses nearly so."""
    for folder, epochs in (("whole", 4), ("here", 2)):
        fit(tmp_path / folder, small_resnet(), epochs=epochs)
    checkpoint, there = tmp_path / "here" / "m.checkpoint.pt", tmp_path / "there"
    write_rounded(checkpoint)
    split(checkpoint, tmp_path, part_bytes=40_000)
    assert join(tmp_path, there / checkpoint.name)
    model = small_resnet()
    assert any(parameter.numel() > KEPT for parameter in model.parameters())  # some are rounded
    fit(there, model, epochs=4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    whole, resumed = log_of(tmp_path / "whole"), log_of(there)
    assert resumed[:2] == whole[:2]
    assert [record["epoch"] for record in resumed] == [1, 2, 3, 4]
    for record, expected in zip(resumed[2:], whole[2:], strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=0.1)
    assert resumed[2:] != whole[2:]


def test_a_dry_run_says_which_slices_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    main([*CIFAR100, "--rate", "4000"])
    output = capsys.readouterr().out
    assert "100 epochs of 25,000 images, at 4,000 images/s" in output
    network = build_backbone("ResNet50", num_classes=100, embedding_dim=128)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    (size,) = map(float, re.findall(r"each leaves ([\d.]+) of 64 MiB, in 3 parts", output))
    assert size == pytest.approx(2 * parameters / 2**20, rel=0.01)
    ends = [float(end) for end in re.findall(r"slice \d of 2: epochs [\d.]+ to ([\d.]+)", output)]
    assert ends[-1] == 100
    assert ends[0] * 24 * 1024 / 4000 == pytest.approx(60 * 9 - 90, rel=0.01)


def test_images_are_counted_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "data", classes=6, training=12, validation=1)
    (tmp_path / "backbone.yaml").write_text(BACKBONE.replace("data_root: data", f"data_root: {tmp_path}/data"))
    main(["--config", str(tmp_path / "backbone.yaml"), "--dry-run", "--rate", "10"])
    assert "2 epochs of 72 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(CIFAR100, "--rate: is missing"), ([CIFAR100[0], "--minutes", "1.5"], "--minutes: should be more than 1.5")],
)
def test_slices_that_cannot_be(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)
