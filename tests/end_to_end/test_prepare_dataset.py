"""prepare_dataset.py as a user runs it: every data set, twice, killed, offline, on bad input."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data import glyphs
from data.folders import list_images
from data.imagenet import LABEL_FILES
from data.preparation import read_stamp

SCRIPT = Path(__file__).parents[2] / "prepare_dataset.py"
GLYPHS = ["--dataset", "glyphs", "--train-per-class", "1", "--validation-per-class", "1"]
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def run(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def succeed(folder: Path, *arguments: str | Path) -> str:
    result = run(folder, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def fail(folder: Path, *arguments: str | Path, **environment: str) -> str:
    """The error of a run that must fail as a user's mistake does: exit code 2, two lines at most, no traceback."""
    result = run(folder, *arguments, **environment)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line and "\r" not in line and "%|" not in line]
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - start <= 2, result.stderr
    assert "Traceback" not in result.stderr
    return "\n".join(lines[start:])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------------------------- CIFAR-100


def write_cifar(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write small `train` and `test` files; returns their values."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    values = {}
    for name, count in (("train", 6), ("test", 4)):
        pixels = rng.integers(0, 256, size=(count, 3072), dtype=np.uint8)
        values[name] = {"data": pixels, "fine_labels": [99, 0, 10, 2, 99, 0][:count]} | changes
        (folder / name).write_bytes(pickle.dumps(values[name], 4))
    return values


@pytest.mark.parametrize("form", ["folder", "parent", "archive"])
def test_cifar100_from_a_local_copy(tmp_path: Path, form: str) -> None:
    values = write_cifar(tmp_path / "copy" / "cifar-100-python")
    source = {"folder": tmp_path / "copy" / "cifar-100-python", "parent": tmp_path / "copy"}.get(form)
    if source is None:
        source = tmp_path / "copy.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(tmp_path / "copy" / "cifar-100-python", "cifar-100-python")
    assert "6 training and 4 validation images" in succeed(tmp_path, "--source", source)

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
    assert "already prepared" in succeed(tmp_path, "--source", source)
    assert "already prepared" in succeed(tmp_path)  # whatever its source was
    assert tree(root) == before


def test_a_resized_copy_is_written_once(tmp_path: Path) -> None:
    write_cifar(tmp_path / "copy")
    first = succeed(tmp_path, "--source", "copy", "--resize", "16")
    assert "data_store/cifar-100-python-16: 6 training and 4 validation images" in first
    before = tree(tmp_path / "data_store")
    assert succeed(tmp_path, "--resize", "16").count(": already ") == 2
    assert tree(tmp_path / "data_store") == before
    assert "cifar-100-python-8: 6 training" in succeed(tmp_path, "--resize", "8")


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
def test_a_resized_copy_after_a_kill(tmp_path: Path, call: int) -> None:
    write_cifar(tmp_path / "copy")
    succeed(tmp_path, "--source", "copy")
    program = [sys.executable, "-c", KILLED_WHILE_RESIZING.format(call=call), "--resize", "16"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    killed = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    store = tmp_path / "data_store"
    assert (store / ".cifar-100-python-16.partial").is_dir()
    assert not (store / "cifar-100-python-16").exists()
    assert "cifar-100-python-16: 6 training and 4 validation images" in succeed(tmp_path, "--resize", "16")
    assert not (store / ".cifar-100-python-16.partial").exists()


def test_offline_it_says_how_to_pass_a_source(tmp_path: Path) -> None:
    message = fail(tmp_path, **OFFLINE, no_proxy="", NO_PROXY="")
    assert "cannot download" in message
    assert "--source" in message
    assert list((tmp_path / "data_store").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fine_labels": [0]}, "train: has 6 images but 1 `fine_labels`"),
        ({"extra": os.system}, "refused; it asks for `posix.system`"),
    ],
)
def test_bad_cifar100_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_cifar(tmp_path / "copy", **changes)
    assert message in fail(tmp_path, "--source", "copy", "--output", "out/cifar")
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar.gz").write_text("no archive")
    write_tar(tmp_path / "damaged.tar.gz", {"train": np.random.default_rng(0).bytes(100_000)}, "w:gz")
    content = (tmp_path / "damaged.tar.gz").read_bytes()
    (tmp_path / "damaged.tar.gz").write_bytes(content[:50_000] + b"\0" * 1000 + content[51_000:])
    for source, message in [
        ("absent", "there is no absent"),
        ("empty", "has no file `train`"),
        ("text.tar.gz", "text.tar.gz: is damaged or no tar file"),
        ("damaged.tar.gz", "damaged.tar.gz: is damaged or no tar file"),
    ]:
        assert message in fail(tmp_path, "--source", source, "--output", "out/cifar")
    assert list((tmp_path / "out").iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- glyphs


def test_glyphs_again_and_after_a_kill(tmp_path: Path) -> None:
    succeed(tmp_path, *GLYPHS, "--seed", "5")
    root = tmp_path / "data_store" / "glyphs"
    whole = tree(root)
    assert len(whole) == 201
    assert json.loads((root / "prepared.json").read_text())["parameters"]["seed"] == 5
    with Image.open(root / "training" / "07" / "00000.png") as image:
        assert np.array_equal(np.asarray(image), glyphs.render(5, "training", 7, 0))
    assert len(list_images(root, "training", num_classes=50).classes) == 50

    assert "already prepared" in succeed(tmp_path, *GLYPHS, "--seed", "5")
    assert "delete the folder or choose another --output" in fail(tmp_path, *GLYPHS, "--seed", "6")
    assert tree(root) == whole

    command = [sys.executable, str(SCRIPT), *GLYPHS, "--seed", "5", "--train-per-class", "40", "--output", "killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".killed.partial"
    deadline = time.monotonic() + 60
    while not any(partial.glob("training/*/*.png")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.is_dir()
    assert not (tmp_path / "killed").exists()
    succeed(tmp_path, *GLYPHS, "--seed", "5", "--output", "killed")
    assert tree(tmp_path / "killed") == whole
    assert not partial.exists()


def test_paths_with_a_home_and_a_variable(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path / "home"), "WHERE": "there"}
    few = ("--train-per-class", "1", "--validation-per-class", "1")
    result = run(tmp_path, *GLYPHS, "--output=~/$WHERE", *few, **environment)
    assert result.returncode == 0, result.stderr
    assert read_stamp(tmp_path / "home" / "there")["dataset"] == "glyphs"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_bad_flags(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    for arguments, message in [
        (["--seed", "1"], "--seed: is for --dataset glyphs only"),
        ([*GLYPHS, "--train-per-class", "0"], "--train-per-class: should be at least 1"),
        ([*GLYPHS, "--source", "x"], "have no source"),
        ([*GLYPHS, "--resize", "0"], "--resize: should be at least 1, got 0"),
        (["--dataset", "imagenet"], "--source: ImageNet has to be fetched by hand"),
        ([*GLYPHS, "--output", "full"], "files that prepare_dataset.py did not write"),
        ([*GLYPHS, "--output", "full/thesis.txt"], "thesis.txt: is a file"),
        ([*GLYPHS, "--output", "full/thesis.txt/glyphs"], "cannot be made"),
    ]:
        assert message in fail(tmp_path, *arguments)
    assert tree(tmp_path)["full/thesis.txt"] == b"precious"


# ----------------------------------------------------------------------------------------------------------- ImageNet

WNIDS = ["n01440764", "n02119789"]


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(buffer, "jpeg")
    return buffer.getvalue()


def write_classes(folder: Path, count: int) -> None:
    for wnid in WNIDS:
        (folder / wnid).mkdir(parents=True)
        for index in range(count):
            (folder / wnid / f"{wnid}_{index}.JPEG").write_bytes(jpeg(index))


def write_tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_training_tar(source: Path) -> None:
    classes = {}
    for wnid in WNIDS:
        write_tar(source / "class.tar", {f"{wnid}_{i}.JPEG": jpeg(i) for i in (1, 2)})
        classes[f"{wnid}.tar"] = (source / "class.tar").read_bytes()
    (source / "class.tar").unlink()
    write_tar(source / "ILSVRC2012_img_train.tar", classes)


VALIDATION = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(10 * i) for i in (1, 2, 3)}
VALIDATION_FILES = {  # what the three images must become: of class 1, 0 and 1
    f"{WNIDS[1]}/ILSVRC2012_val_00000001.JPEG": jpeg(10),
    f"{WNIDS[0]}/ILSVRC2012_val_00000002.JPEG": jpeg(20),
    f"{WNIDS[1]}/ILSVRC2012_val_00000003.JPEG": jpeg(30),
}


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


def write_kaggle_labels(source: Path) -> None:
    lines = ["ImageId,PredictionString", *(f"ILSVRC2012_val_{i:08d},{WNIDS[i % 2]} 1 2 3 4" for i in (3, 1, 2))]
    (source / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")


def write_plain_labels(source: Path) -> None:
    lines = [f"ILSVRC2012_val_{i:08d}.JPEG {WNIDS[i % 2]}" for i in (1, 2, 3)]
    (source / "validation_labels.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("names", [("train", "val"), ("training", "validation")])
def test_imagenet_folders_are_linked(tmp_path: Path, names: tuple[str, str]) -> None:
    source = tmp_path / "ilsvrc"
    write_classes(source / names[0], 3)
    write_classes(source / names[1], 1)
    out = succeed(tmp_path, "--dataset", "imagenet", "--source", "ilsvrc")
    assert "6 training and 2 validation images" in out
    root = tmp_path / "data_store" / "imagenet-1.0.2" / "data" / "raw"
    assert (root / "training").resolve() == source / names[0]
    assert (root / "validation").resolve() == source / names[1]
    assert list_images(root, "training").classes == WNIDS
    assert "already prepared" in succeed(tmp_path, "--dataset", "imagenet", "--source", "ilsvrc")


def test_imagenet_folders_with_what_is_no_part_of_them(tmp_path: Path) -> None:
    """And with images below their class folders, as tiny-imagenet's CLASS/images/*.JPEG."""
    for split, count in (("train", 3), ("val", 1)):
        write_classes(tmp_path / split, count)
        for wnid in WNIDS:
            (tmp_path / split / wnid / "images").mkdir()
            for image in (tmp_path / split / wnid).glob("*.JPEG"):
                image.rename(image.parent / "images" / image.name)
            (tmp_path / split / wnid / "images" / f"._{wnid}_0.JPEG").write_bytes(b"\0\5\x16\7")
        (tmp_path / split / ".ipynb_checkpoints").mkdir()
        (tmp_path / split / WNIDS[0] / "around").symlink_to("..")
    (tmp_path / "train" / "@eaDir").mkdir()
    result = run(tmp_path, "--dataset", "imagenet", "--source", ".", "--output", "raw")
    assert result.returncode == 0, result.stderr
    assert "6 training and 2 validation images" in result.stdout
    assert f"{tmp_path}/train: left out hidden images: 2 (n" in result.stdout
    assert "circular folders: 3 (.ipynb_checkpoints, @eaDir, n01440764/around)" in result.stdout
    assert list_images(tmp_path / "raw", "training").classes == WNIDS
    assert len(list_images(tmp_path / "raw", "training")) == 6


# Runs prepare_dataset.py with the checksums of the small files in place of the official ones.
WITH_OTHER_CHECKSUMS = """
import hashlib
from pathlib import Path
from torchvision.datasets import imagenet
from prepare_dataset import main
from utils.errors import run_script

for kind, (name, _) in imagenet.ARCHIVE_META.items():
    if Path(name).exists():
        imagenet.ARCHIVE_META[kind] = (name, hashlib.md5(Path(name).read_bytes()).hexdigest())
run_script(main)
"""
RAW = ("--dataset", "imagenet", "--source", ".", "--output", "raw")


def prepare_archives(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITH_OTHER_CHECKSUMS, *RAW]
    paths = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(SCRIPT.parent)])
    environment = os.environ | environment | {"PYTHONPATH": paths}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("write_labels", [write_devkit, write_kaggle_labels, write_plain_labels])
def test_imagenet_tar_files(tmp_path: Path, write_labels: Any) -> None:
    write_training_tar(tmp_path)
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", VALIDATION)
    write_labels(tmp_path)
    done = prepare_archives(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "raw: 4 training and 3 validation images" in done.stdout
    assert tree(tmp_path / "raw" / "validation") == VALIDATION_FILES
    expected = {f"{wnid}/{wnid}_{i}.JPEG": jpeg(i) for wnid in WNIDS for i in (1, 2)}
    assert tree(tmp_path / "raw" / "training") == expected
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["prepared.json", "training", "validation"]


def test_tar_files_that_are_not_the_official_ones(tmp_path: Path) -> None:
    write_training_tar(tmp_path)
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", VALIDATION)
    write_devkit(tmp_path)
    assert "ILSVRC2012_devkit_t12.tar.gz: is damaged or not the official file" in fail(tmp_path, *RAW)
    write_plain_labels(tmp_path)
    assert "ILSVRC2012_img_train.tar: is damaged or not the official file" in fail(tmp_path, *RAW)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((1, 3), "the labels of the validation images do not name ILSVRC2012_val_00000002"),
        ((1, 2), "ILSVRC2012_img_val.tar has 3 images, but labels for 2 are given"),
    ],
)
def test_labels_that_do_not_fit_a_tar_file(tmp_path: Path, lines: tuple[int, ...], message: str) -> None:
    write_training_tar(tmp_path)
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", VALIDATION)
    text = "".join(f"ILSVRC2012_val_{i:08d}.JPEG {WNIDS[0]}\n" for i in lines)
    (tmp_path / "validation_labels.txt").write_text(text)
    done = prepare_archives(tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "raw").exists()


def test_imagenet_flat_validation_folder_is_linked_image_by_image(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 1)
    (tmp_path / "val").mkdir()
    for name, content in VALIDATION.items():
        (tmp_path / "val" / name).write_bytes(content)
        (tmp_path / "val" / f"._{name}").write_bytes(b"of macOS")
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()  # no class folder
    arguments = ["--dataset", "imagenet", "--source", ".", "--output", "raw"]
    assert "their classes are not given" in fail(tmp_path, *arguments)
    write_kaggle_labels(tmp_path)
    succeed(tmp_path, *arguments)
    assert tree(tmp_path / "raw" / "validation") == VALIDATION_FILES
    assert all(path.is_symlink() for path in (tmp_path / "raw" / "validation").glob("*/*"))


@pytest.mark.parametrize("write_labels", [write_kaggle_labels, write_plain_labels])
def test_label_files_with_a_byte_order_mark(tmp_path: Path, write_labels: Any) -> None:
    write_classes(tmp_path / "train", 1)
    (tmp_path / "val").mkdir()
    for name, content in VALIDATION.items():
        (tmp_path / "val" / name).write_bytes(content)
    write_labels(tmp_path)
    (path,) = (tmp_path / name for name in LABEL_FILES if (tmp_path / name).exists())
    text = path.read_text()
    path.write_text(text, encoding="utf-16")
    assert f"{path.name}: is UTF-16 text; save it as UTF-8" in fail(tmp_path, *RAW)
    path.write_text(text, encoding="utf-8-sig")
    succeed(tmp_path, *RAW)
    assert tree(tmp_path / "raw" / "validation") == VALIDATION_FILES


def test_the_devkit_needs_scipy_and_says_so(tmp_path: Path) -> None:
    write_training_tar(tmp_path)
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", VALIDATION)
    write_devkit(tmp_path)
    (tmp_path / "without" / "scipy").mkdir(parents=True)
    (tmp_path / "without" / "scipy" / "__init__.py").write_text("raise ImportError")
    done = prepare_archives(tmp_path, PYTHONPATH=str(tmp_path / "without"))
    assert done.returncode == 2
    assert "ILSVRC2012_devkit_t12.tar.gz: its list of classes is a MATLAB file; pip install scipy" in done.stderr


def test_bad_imagenet_sources(tmp_path: Path) -> None:
    arguments = ["--dataset", "imagenet", "--source", "ilsvrc", "--output", "out/raw"]
    source = tmp_path / "ilsvrc"
    assert "there is no folder" in fail(tmp_path, *arguments)
    source.mkdir()
    assert "`train` or `training`" in fail(tmp_path, *arguments)
    write_classes(source / "train", 1)
    assert "`val` or `validation`" in fail(tmp_path, *arguments)
    (source / "val").mkdir()
    for name, content in VALIDATION.items():
        (source / "val" / name).write_bytes(content)
    (source / "validation_labels.txt").write_text("ILSVRC2012_val_00000001.JPEG fox\n")
    assert "validation_labels.txt, line 1: should be `FILE WNID`" in fail(tmp_path, *arguments)
    (source / "validation_labels.txt").write_text(f"ILSVRC2012_val_00000001.JPEG {WNIDS[0]}\n")
    assert "do not name ILSVRC2012_val_00000002.JPEG" in fail(tmp_path, *arguments)
    write_plain_labels(source)
    (source / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    assert "has 2 images, but labels for 3 are given" in fail(tmp_path, *arguments)
    (source / "val" / "ILSVRC2012_val_00000003.JPEG").write_bytes(jpeg(30))
    (source / "train" / WNIDS[0]).rename(tmp_path / "away")
    assert f"the class `{WNIDS[0]}` is in the validation images only" in fail(tmp_path, *arguments)
    (source / "train" / "n00000000").mkdir()
    assert "the class `n00000000` has no image" in fail(tmp_path, *arguments)
    assert list((tmp_path / "out").iterdir()) == []
