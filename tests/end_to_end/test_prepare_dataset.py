"""prepare_dataset.py as a user runs it: every data set, twice, killed, offline, on bad input."""

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data import glyphs
from data.folders import list_images
from data.preparation import read_stamp
from tests.tiny import REPOSITORY, command_of, fail, succeed

SCRIPT = "prepare_dataset.py"
GLYPHS = ("--dataset", "glyphs", "--train-per-class", "1", "--validation-per-class", "1")
IMAGENET = ("--dataset", "imagenet", "--source", ".", "--output", "raw")


def prepare(folder: Path, *arguments: str, processes: int | None = None) -> str:
    return succeed(SCRIPT, *arguments, cwd=folder, processes=processes)


def refuse(folder: Path, *arguments: str, leaves: tuple[str, ...] = (), processes: int | None = None) -> str:
    return fail(SCRIPT, *arguments, cwd=folder, leaves=leaves, processes=processes)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


# ---------------------------------------------------------------------------------------------------------- CIFAR-100


def write_cifar(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write small `train` and `test` files; returns their values."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    values = {}
    for name, count in (("train", 6), ("test", 4)):
        pixels = rng.integers(0, 256, size=(count, 3072), dtype=np.uint8)
        values[name] = {"data": pixels, "fine_labels": [99, 0, 10, 2, 99, 0][:count]} | changes
        (folder / name).write_bytes(pickle.dumps(values[name], 4))
    return values


@pytest.mark.parametrize("source", ["copy/cifar-100-python", "copy", "copy.tar.gz"])
def test_cifar100_from_a_local_copy(tmp_path: Path, source: str) -> None:
    values = write_cifar(tmp_path / "copy" / "cifar-100-python")
    write_tar(tmp_path / "copy.tar.gz", tree(tmp_path / "copy"), "w:gz")
    assert "6 training and 4 validation images" in prepare(tmp_path, "--source", source)

    root = tmp_path / "data_store" / "cifar-100-python"
    assert sorted(path.name for path in (root / "training").iterdir()) == ["0", "10", "2", "99"]
    for split, name in (("training", "train"), ("validation", "test")):
        for path in (root / split).glob("*/*.png"):
            index = int(path.stem)
            assert int(path.parent.name) == values[name]["fine_labels"][index]
            with Image.open(path) as image:
                pixels = np.asarray(image).transpose(2, 0, 1).reshape(-1)
            assert np.array_equal(pixels, values[name]["data"][index])
    assert read_stamp(root)["split"] == "local, split not verified"
    before = tree(root)
    assert "already prepared" in prepare(tmp_path, "--source", source)
    assert "already prepared" in prepare(tmp_path)  # whatever its source was
    assert tree(root) == before


KILLED_WHILE_RESIZING = """
import os, signal
from itertools import count
from data import resized
from prepare_dataset import main

reduced, calls = resized.reduced, count(1)

def reduced_until_killed(path, size):
    if next(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return reduced(path, size)

resized.reduced = reduced_until_killed
main()
"""


@pytest.mark.parametrize("call", [1, 10])  # at the start of the training split, at the end of the other
def test_a_resized_copy_is_written_once_and_whole_even_after_a_kill(tmp_path: Path, call: int) -> None:
    write_cifar(tmp_path / "copy")
    prepare(tmp_path, "--source", "copy")
    program = [sys.executable, "-c", KILLED_WHILE_RESIZING.format(call=call), "--resize", "16"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    store = tmp_path / "data_store"
    assert (store / ".cifar-100-python-16.partial").is_dir()
    assert not (store / "cifar-100-python-16").exists()
    assert "cifar-100-python-16: 6 training and 4 validation images" in prepare(tmp_path, "--resize", "16")
    assert not (store / ".cifar-100-python-16.partial").exists()
    before = tree(store)
    assert prepare(tmp_path, "--resize", "16").count(": already ") == 2
    assert tree(store) == before


def test_offline_it_says_how_to_pass_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.setenv(name, "" if name == "no_proxy" else "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    message = refuse(tmp_path, leaves=("data_store",))
    assert "cannot download" in message
    assert "--source" in message


def test_bad_sources_of_cifar100(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_cifar(tmp_path / "malicious", extra=os.system)
    (tmp_path / "text.tar.gz").write_text("no archive")
    write_tar(tmp_path / "damaged.tar.gz", {"train": np.random.default_rng(0).bytes(100_000)}, "w:gz")
    content = (tmp_path / "damaged.tar.gz").read_bytes()
    (tmp_path / "damaged.tar.gz").write_bytes(content[:50_000] + b"\0" * 1000 + content[51_000:])
    for source, message in [
        ("absent", "there is no absent"),
        ("empty", "has no file `train`"),
        ("malicious", "refused; it asks for `posix.system`"),
        ("text.tar.gz", "text.tar.gz: is damaged or no tar file"),
        ("damaged.tar.gz", "damaged.tar.gz: is damaged or no tar file"),
    ]:
        assert message in refuse(tmp_path, "--source", source, "--output", "cifar")


# ------------------------------------------------------------------------------------------------------------- glyphs


def test_glyphs_again_and_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, *GLYPHS, "--seed", "5", processes=1)
    root = tmp_path / "data_store" / "glyphs"
    whole = tree(root)
    assert len(whole) == 201
    assert json.loads((root / "prepared.json").read_text())["parameters"]["seed"] == 5
    with Image.open(root / "training" / "07" / "00000.png") as image:
        assert np.array_equal(np.asarray(image), glyphs.render(5, "training", 7, 0))
    assert len(list_images(root, "training", num_classes=50).classes) == 50

    assert "already prepared" in prepare(tmp_path, *GLYPHS, "--seed", "5")
    assert "delete the folder or choose another --output" in refuse(tmp_path, *GLYPHS, "--seed", "6")

    command = command_of(SCRIPT, *GLYPHS, "--seed", "5", "--train-per-class", "40", "--output", "killed")
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".killed.partial"
    deadline = time.monotonic() + 60
    while not any(partial.glob("training/*/*.png")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert partial.is_dir()
    assert not (tmp_path / "killed").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare(tmp_path, *GLYPHS, "--seed", "5", "--output=~/killed")
    assert tree(tmp_path / "killed") == whole
    assert not partial.exists()


def test_bad_flags(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    for arguments, message in [
        (("--seed", "1"), "--seed: is for --dataset glyphs only"),
        ((*GLYPHS, "--train-per-class", "0"), "--train-per-class: should be at least 1"),
        ((*GLYPHS, "--source", "x"), "have no source"),
        ((*GLYPHS, "--resize", "0"), "--resize: should be at least 1, got 0"),
        (("--dataset", "imagenet", "--output", "raw"), "--source: ImageNet has to be fetched by hand"),
        ((*GLYPHS, "--output", "full"), "files that prepare_dataset.py did not write"),
        ((*GLYPHS, "--output", "full/thesis.txt"), "thesis.txt: is a file"),
        ((*GLYPHS, "--output", "full/thesis.txt/glyphs"), "cannot be made"),
    ]:
        assert message in refuse(tmp_path, *arguments)


# ----------------------------------------------------------------------------------------------------------- ImageNet

WNIDS = ["n01440764", "n02119789"]


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(buffer, "jpeg")
    return buffer.getvalue()


TRAINING = {wnid: {f"{wnid}_{i}.JPEG": jpeg(i) for i in (1, 2)} for wnid in WNIDS}
VALIDATION = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(10 * i) for i in (1, 2, 3)}  # of class 1, 0 and 1
SORTED_VALIDATION = {f"{WNIDS[i % 2]}/{name}": VALIDATION[name] for i, name in enumerate(VALIDATION, start=1)}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_classes(folder: Path) -> None:
    for wnid, files in TRAINING.items():
        write_files(folder / wnid, files)


def write_devkit(source: Path) -> None:
    """Class numbers in an order of their own, and a number for a class that groups others, as in the official file."""
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    synsets = np.zeros(3, dtype=[(name, object) for name in names])
    synsets[:] = [(1.0, WNIDS[1], "a", "", 0.0), (2.0, WNIDS[0], "b, c", "", 0.0), (3.0, "n00001740", "d", "", 2.0)]
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": synsets}, do_compression=True)
    folder = "ILSVRC2012_devkit_t12/data"
    files = {f"{folder}/meta.mat": buffer.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n1\n"}
    write_tar(source / "ILSVRC2012_devkit_t12.tar.gz", files, "w:gz")


def write_kaggle_labels(source: Path, encoding: str = "utf-8") -> None:
    lines = ["ImageId,PredictionString", *(f"ILSVRC2012_val_{i:08d},{WNIDS[i % 2]} 1 2 3 4" for i in (3, 1, 2))]
    (source / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n", encoding)


def write_plain_labels(source: Path, encoding: str = "utf-8") -> None:
    lines = [f"ILSVRC2012_val_{i:08d}.JPEG {WNIDS[i % 2]}" for i in (1, 2, 3)]
    (source / "validation_labels.txt").write_text("\n".join(lines), encoding)


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """The official tar files of the images, but small."""
    classes = {}
    for wnid, files in TRAINING.items():
        write_tar(tmp_path / "class.tar", files)
        classes[f"{wnid}.tar"] = (tmp_path / "class.tar").read_bytes()
    (tmp_path / "class.tar").unlink()
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", classes)
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", VALIDATION)
    return tmp_path


def take_for_official(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the checksums of the small files in place of the official ones."""
    from torchvision.datasets import imagenet

    for kind, (name, _) in imagenet.ARCHIVE_META.items():
        if (folder / name).exists():
            md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
            monkeypatch.setitem(imagenet.ARCHIVE_META, kind, (name, md5))


@pytest.mark.parametrize("names", [("train", "val"), ("training", "validation")])
def test_imagenet_folders_are_linked_with_what_is_no_part_of_them(tmp_path: Path, names: tuple[str, str]) -> None:
    """And with images below their class folders, as tiny-imagenet's CLASS/images/*.JPEG."""
    for name in names:
        for wnid, files in TRAINING.items():
            write_files(tmp_path / name / wnid / "images", files | {f"._{wnid}_1.JPEG": b"\0\5\x16\7"})
        (tmp_path / name / ".ipynb_checkpoints").mkdir()
        (tmp_path / name / WNIDS[0] / "around").symlink_to("..")
    (tmp_path / names[0] / "@eaDir").mkdir()
    output = prepare(tmp_path, *IMAGENET)
    assert "4 training and 4 validation images" in output
    assert f"{tmp_path}/{names[0]}: left out hidden images: 2 (n" in output
    assert "circular folders: 3 (.ipynb_checkpoints, @eaDir, n01440764/around)" in output
    for split, name in zip(("training", "validation"), names, strict=True):
        assert (tmp_path / "raw" / split).resolve() == tmp_path / name
        images = list_images(tmp_path / "raw", split)
        assert (images.classes, len(images)) == (WNIDS, 4)
    assert "already prepared" in prepare(tmp_path, *IMAGENET)


@pytest.mark.parametrize("write_labels", [write_devkit, write_kaggle_labels, write_plain_labels])
def test_imagenet_tar_files(
    archives: Path, monkeypatch: pytest.MonkeyPatch, write_labels: Callable[[Path], None]
) -> None:
    write_labels(archives)
    damaged = "devkit_t12.tar.gz" if write_labels is write_devkit else "img_train.tar"
    assert f"ILSVRC2012_{damaged}: is damaged or not the official file" in refuse(archives, *IMAGENET)
    take_for_official(archives, monkeypatch)
    assert "raw: 4 training and 3 validation images" in prepare(archives, *IMAGENET)
    assert tree(archives / "raw" / "validation") == SORTED_VALIDATION
    expected = {f"{wnid}/{name}": content for wnid in WNIDS for name, content in TRAINING[wnid].items()}
    assert tree(archives / "raw" / "training") == expected
    assert sorted(path.name for path in (archives / "raw").iterdir()) == ["prepared.json", "training", "validation"]


def test_the_devkit_needs_scipy_and_says_so(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_devkit(archives)
    take_for_official(archives, monkeypatch)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    message = "ILSVRC2012_devkit_t12.tar.gz: its list of classes is a MATLAB file; pip install scipy"
    assert message in refuse(archives, *IMAGENET)


def test_labels_that_do_not_fit_a_tar_file(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_for_official(archives, monkeypatch)
    for numbers, message in [
        ((1, 3), "the labels of the validation images do not name ILSVRC2012_val_00000002"),
        ((1, 2), "ILSVRC2012_img_val.tar has 3 images, but labels for 2 are given"),
    ]:
        lines = [f"ILSVRC2012_val_{i:08d}.JPEG {WNIDS[0]}\n" for i in numbers]
        (archives / "validation_labels.txt").write_text("".join(lines))
        assert message in refuse(archives, *IMAGENET)


@pytest.mark.parametrize("write_labels", [write_kaggle_labels, write_plain_labels])
def test_a_flat_validation_folder_is_linked_image_by_image(
    tmp_path: Path, write_labels: Callable[[Path, str], None]
) -> None:
    write_classes(tmp_path / "train")
    write_files(tmp_path / "val", VALIDATION | {f"._{name}": b"of macOS" for name in VALIDATION})
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()  # no class folder
    assert "their classes are not given" in refuse(tmp_path, *IMAGENET)
    write_labels(tmp_path, "utf-16")
    assert ": is UTF-16 text; save it as UTF-8" in refuse(tmp_path, *IMAGENET)
    write_labels(tmp_path, "utf-8-sig")  # with a byte order mark
    prepare(tmp_path, *IMAGENET)
    assert tree(tmp_path / "raw" / "validation") == SORTED_VALIDATION
    assert all(path.is_symlink() for path in (tmp_path / "raw" / "validation").glob("*/*"))


def test_bad_imagenet_sources(tmp_path: Path) -> None:
    assert "there is no folder" in refuse(tmp_path, *IMAGENET, "--source", "absent")
    assert "`train` or `training`" in refuse(tmp_path, *IMAGENET)
    write_classes(tmp_path / "train")
    assert "`val` or `validation`" in refuse(tmp_path, *IMAGENET)
    write_files(tmp_path / "val", VALIDATION)
    (tmp_path / "validation_labels.txt").write_text("ILSVRC2012_val_00000001.JPEG fox\n")
    assert "validation_labels.txt, line 1: should be `FILE WNID`" in refuse(tmp_path, *IMAGENET)
    (tmp_path / "validation_labels.txt").write_text(f"ILSVRC2012_val_00000001.JPEG {WNIDS[0]}\n")
    assert "do not name ILSVRC2012_val_00000002.JPEG" in refuse(tmp_path, *IMAGENET)
    write_plain_labels(tmp_path)
    last = tmp_path / "val" / "ILSVRC2012_val_00000003.JPEG"
    last.unlink()
    assert "has 2 images, but labels for 3 are given" in refuse(tmp_path, *IMAGENET)
    last.write_bytes(VALIDATION[last.name])
    (tmp_path / "train" / WNIDS[0]).rename(tmp_path / "away")
    assert f"the class `{WNIDS[0]}` is in the validation images only" in refuse(tmp_path, *IMAGENET)
    (tmp_path / "train" / "n00000000").mkdir()
    assert "the class `n00000000` has no image" in refuse(tmp_path, *IMAGENET)
