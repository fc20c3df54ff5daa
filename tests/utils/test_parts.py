"""Weights in parts: what is rounded and by how much, that nothing else changes, and that no wrong part is taken."""

from pathlib import Path

import pytest
import torch

from tests.tiny import same_bits
from utils.errors import UserError
from utils.files import read_torch, write_torch
from utils.parts import KEPT, join, rounded, split, write_rounded


def weights() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    numbers = torch.randn(2 * KEPT, generator=random) * torch.logspace(-9, 9, 2 * KEPT)
    return {
        "wide": numbers.view(2, KEPT),
        "bf16 already": numbers.bfloat16().float(),
        "norm": torch.randn(KEPT, generator=random),
        "sums": torch.randn(2 * KEPT, generator=random, dtype=torch.float64),
        "steps": torch.arange(2 * KEPT),
    }


def test_large_float32_tensors_are_rounded_and_nothing_else() -> None:
    before = weights()
    after = rounded({"state": {"model": before}, "history": [{"loss": 0.1}], "identity": "x"})
    assert (after["history"], after["identity"]) == ([{"loss": 0.1}], "x")
    after = after["state"]["model"]
    assert {name for name in before if after[name].dtype == torch.bfloat16} == {"wide", "bf16 already"}
    error = ((after["wide"].double() - before["wide"].double()) / before["wide"].double()).abs().max()
    assert 2**-10 < error <= 2**-8
    assert same_bits({**after, "wide": before["wide"], "bf16 already": after["bf16 already"].float()}, before)


def test_a_file_goes_in_parts_and_comes_back(tmp_path: Path) -> None:
    path, folder = tmp_path / "there" / "m.checkpoint.pt", tmp_path / "parts"
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    write_torch(path, {"state": {"model": weights(), "optimizer": momentum}, "history": [1]})
    folder.mkdir()
    write_rounded(path)
    content = path.read_bytes()
    assert len(split(path, folder, part_bytes=5_000)) > 10
    parts = split(path, folder, part_bytes=30_000)  # those before are gone
    assert len(list(folder.iterdir())) == len(parts) + 1
    assert max(part.stat().st_size for part in parts) <= 30_000
    path.unlink()
    assert join(folder, path)
    assert path.read_bytes() == content
    assert not join(folder, tmp_path / "other.pt")
    found = read_torch(path)
    assert found["state"]["optimizer"] == {"state": {}, "param_groups": momentum["param_groups"]}
    write_rounded(path)  # once more, it rounds nothing
    assert same_bits(read_torch(path)["state"]["model"], found["state"]["model"])


def test_parts_that_do_not_make_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(bytes(range(100)))
    with pytest.raises(UserError, match=r"m\.pt: has 0\.0 MiB, and no more than 9.*e-05 can go"):
        split(path, tmp_path, 40, all_bytes=99)
    parts = split(path, tmp_path, 40)
    parts[1].write_bytes(b"x" * 40)
    path.unlink()
    with pytest.raises(UserError, match=r"m\.pt\.json: its parts are damaged"):
        join(tmp_path, path)
    parts[2].unlink()
    with pytest.raises(UserError, match=r"m\.pt\.002: is missing; bring all 3 parts of m\.pt"):
        join(tmp_path, path)
    assert not path.exists()
