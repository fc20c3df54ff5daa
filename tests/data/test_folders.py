"""The layout on disk: which classes and files belong to a data set, and what can be decoded."""

import contextlib
import io
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import DatasetParams, Thinned
from data.datasets import list_split
from data.folders import ImageList, hold_out, list_images, read_image, read_pixels, refusal, thin_out
from utils.errors import UserError
from utils.files import read_torch, write_torch

RNG = np.random.default_rng(0)


def write_files(root: Path, *names: str) -> Path:
    """Files of a byte each."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def named(listed: ImageList) -> list[tuple[str, str]]:
    """(file name, name of the class that its label stands for) of each image."""
    return [(path.name, listed.classes[label]) for path, label in zip(listed.paths, listed.labels, strict=True)]


# Which folders are classes, and which files images


def test_the_old_models_classes_are_the_first_folders_sorted_as_strings(tmp_path: Path) -> None:
    write_files(tmp_path, *(f"training/{label}/{label}.png" for label in range(100)))
    listed = list_images(tmp_path, "training", num_classes=50)
    assert {int(name) for name in listed.classes} == {*range(6), *range(10, 54)}
    assert named(listed) == [(f"{name}.png", name) for name in listed.classes]


def test_images_at_any_depth_belong_to_the_class_folder_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """tiny-imagenet has CLASS/images/*.JPEG."""
    images = ("n1/a.png", "n1/images/a.JPEG", "n1/images/b.webp", "n1/x/y/z.png", "n1/z.png", "n2/d/a.bmp")
    write_files(tmp_path / "training", *images[::-1], "n1/a.txt", "n1/png", "n2/.DS_Store", "a_file")
    listed = list_images(tmp_path, "training")
    assert listed.classes == ["n1", "n2"]
    assert listed.labels == [0] * 5 + [1]
    assert listed.paths == [tmp_path / "training" / name for name in images]


def test_held_out_images_are_a_share_of_each_class_and_the_same_whatever_else_is_listed(tmp_path: Path) -> None:
    labels = [0] * 10 + [1] * 25 + [2] * 10
    paths = [tmp_path / str(i) for i in range(len(labels))]
    whole, two = ImageList(paths, labels, ["a", "b", "c"]), ImageList(paths[:35], labels[:35], ["a", "b"])
    kept, held = hold_out(whole, 0.2)
    assert [held.labels.count(label) for label in range(3)] == [2, 5, 2]
    assert sorted(kept.paths + held.paths) == sorted(paths)
    for part in (kept, held):
        assert [labels[int(path.name)] for path in part.paths] == part.labels
        assert part.classes == whole.classes
    assert hold_out(two, 0.2)[1].paths == held.paths[:7]
    with pytest.raises(UserError, match=r"dataset_params\.held_out: class a has 1 training images, too few"):
        hold_out(ImageList(paths[:1], [0], ["a"]), 0.5)


def test_thinned_classes_keep_a_share_of_their_images_the_same_whatever_else_is_listed(tmp_path: Path) -> None:
    labels = [0] * 10 + [1] * 25 + [2] * 10
    paths = [tmp_path / str(i) for i in range(len(labels))]
    whole, two = ImageList(paths, labels, ["a", "b", "c"]), ImageList(paths[:35], labels[:35], ["a", "b"])
    kept = thin_out(whole, range(1, 3), 0.2)
    assert [kept.labels.count(label) for label in range(3)] == [10, 5, 2]
    assert [labels[int(path.name)] for path in kept.paths] == kept.labels
    assert kept.paths == sorted(kept.paths, key=lambda path: int(path.name))
    assert kept.classes == whole.classes
    assert thin_out(two, range(1, 2), 0.2).paths == kept.paths[:15]
    assert thin_out(whole, range(1, 3), 0.001).labels == [0] * 10 + [1, 2]
    with pytest.raises(
        UserError, match=r"dataset_params\.thinned\.classes: \[1, 4\] asked for, 3 classes are trained on"
    ):
        thin_out(whole, range(1, 4), 0.2)


def test_what_is_held_out_is_not_thinned(tmp_path: Path) -> None:
    write_files(tmp_path, *(f"training/{label}/{i}.png" for label in "ab" for i in range(20)))
    thinned = Thinned(classes=[0, 1], share=0.25)
    params = DatasetParams(name="glyphs", data_root=str(tmp_path), batch_size=1, held_out=0.2, thinned=thinned)
    training, validation = (list_split(params, split) for split in ("training", "validation"))
    assert training.labels == [0] * 4 + [1] * 16
    assert validation.labels == [0] * 4 + [1] * 4
    assert not set(training.paths) & set(validation.paths)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"dataset_params\.data_root: {tmp_path} has no folder `training`"):
        list_images(tmp_path, "training")
    write_files(tmp_path, "training/0/a.png", "training/1/a.png")
    with pytest.raises(UserError, match=r"dataset_params\.num_classes: 3 classes asked for, .*training has 2"):
        list_images(tmp_path, "training", num_classes=3)
    (tmp_path / "validation").mkdir()
    with pytest.raises(UserError, match=r"validation has no class folders"):
        list_images(tmp_path, "validation")
    (tmp_path / "training" / "2").mkdir()
    with pytest.raises(UserError, match=r"the class folder .*training/2 holds no image"):
        list_images(tmp_path, "training")
    assert len(list_images(tmp_path, "training", num_classes=2)) == 2  # classes not asked for may be empty


def test_validation_is_numbered_by_the_classes_of_training_or_where_there_is_none_by_its_own(tmp_path: Path) -> None:
    training = [f"training/{name}/{name}.png" for name in ("ant", "bee", "cat", "dog")]
    write_files(tmp_path, *training, "validation/bee/bee.png", "validation/dog/dog.png", "validation/aye/aye.png")
    (tmp_path / "validation" / "cat").mkdir()
    (tmp_path / "validation" / "elk").mkdir()
    of_training = list_images(tmp_path, "training")
    assert of_training.notes == []
    for all_classes, images, classes, done in (
        (False, ["bee", "dog"], [], "left out"),
        (True, ["bee", "dog", "aye"], ["aye"], "numbered after its classes"),
    ):
        listed = list_images(tmp_path, "validation", all_classes=all_classes)
        assert listed.classes == [*of_training.classes, *classes] == ["ant", "bee", "cat", "dog", *classes]
        assert named(listed) == [(f"{name}.png", name) for name in images]
        assert listed.notes == [
            f"{tmp_path}/validation: no image of some of the 4 classes: 2 (ant, cat)",
            f"{tmp_path}/validation: class folders that the training split lacks, {done}: 1 (aye)",
        ]
    two = list_images(tmp_path, "validation", 2)
    assert (named(two), two.classes) == ([("bee.png", "bee")], ["ant", "bee"])
    assert "dog" not in "".join(two.notes)  # it was not asked for
    assert list_images(tmp_path, "validation", 2, all_classes=True).labels == [1, 3, 4]
    with pytest.raises(UserError, match=r"validation holds no image of the classes of the training split"):
        list_images(tmp_path, "validation", 1)
    shutil.rmtree(tmp_path / "training")
    own = list_images(tmp_path, "validation")
    assert own.classes == ["aye", "bee", "cat", "dog", "elk"]
    assert named(own) == [(f"{name}.png", name) for name in ("aye", "bee", "dog")]
    assert own.notes == [f"{tmp_path}/validation: no image of some of the 5 classes: 2 (cat, elk)"]


def test_hidden_files_and_folders_of_tools_are_no_part_of_a_data_set(tmp_path: Path) -> None:
    write_files(tmp_path, *(f"training/{name}/{file}.png" for name in "ab" for file in "01"))
    plain = list_images(tmp_path, "training")
    write_files(tmp_path, "training/.ipynb_checkpoints/0.png", "training/a/.ipynb_checkpoints/0.png")
    write_files(tmp_path, *(f"training/{name}/0.png" for name in ("@eaDir", "__MACOSX", "$RECYCLE.BIN")))
    write_files(tmp_path, *(f"training/{name}/._{file}.png" for name in "ab" for file in "01"), "training/a/.DS_Store")
    (tmp_path / "training" / "lost+found").mkdir()  # an empty class would be refused
    listed = list_images(tmp_path, "training")
    assert (listed.paths, listed.labels, listed.classes) == (plain.paths, plain.labels, plain.classes)
    assert plain.notes == []
    assert listed.notes == [
        f"{tmp_path}/training: left out hidden images: 4 (a/._0.png, a/._1.png, b/._0.png, ...); "
        "hidden, tool or circular folders: 6 ($RECYCLE.BIN, .ipynb_checkpoints, @eaDir, ...)"
    ]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "../../0", "sub"])
def test_a_link_to_a_folder_around_it_is_not_followed(tmp_path: Path, target: str) -> None:
    """Nor are the images counted twice that lie around it."""
    root = tmp_path / "data"
    names = ["training/0/a.png", "training/0/sub/b.png", "training/1/c.png", "validation/0/d.png"]
    write_files(root, *names)
    (root / "training" / "0" / "sub" / "link").symlink_to(target)
    (root / "training" / "all").symlink_to(".")
    (root / "training" / "1" / "itself").symlink_to("itself")
    (root / "training" / "1" / "other").symlink_to("../0/a.png")  # no image by its name
    (tmp_path / "link").symlink_to("data")  # around it by its name, not by where it lies
    (root / "training" / "1" / "back").symlink_to(tmp_path / "link")
    listed = list_images(tmp_path / "link", "training")
    assert [str(path.relative_to(tmp_path / "link")) for path in listed.paths] == names[:3]
    assert listed.classes == ["0", "1"]
    assert "hidden, tool or circular folders: " in listed.notes[0]


def test_an_images_link_that_leads_nowhere_is_listed(tmp_path: Path) -> None:
    """So that it is named as unreadable, and the ids of the others stay."""
    write_files(tmp_path, "training/0/a.png")
    (tmp_path / "training" / "0" / "b.png").symlink_to("nowhere")
    (tmp_path / "training" / "0" / "c.png").symlink_to("c.png")
    listed = list_images(tmp_path, "training")
    assert [path.name for path in listed.paths] == ["a.png", "b.png", "c.png"]
    assert [listed.pixels(index) for index in range(3)] == [None] * 3
    assert [size for _, size, _ in listed.files(tmp_path)] == [1, -1, -1]


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/training/\xe9t\xe9"
    Path(os.fsdecode(folder)).mkdir(parents=True)
    Path(os.fsdecode(folder + b"/\xff.png")).write_bytes(b"1234")
    listed = list_images(tmp_path, "training")
    assert os.fsencode(listed.classes[0]) == b"\xe9t\xe9"
    contents = listed.contents(tmp_path)
    write_torch(tmp_path / "checkpoint.pt", {"images": contents})
    assert read_torch(tmp_path / "checkpoint.pt")["images"] == contents == listed.contents(tmp_path)
    assert json.loads(json.dumps(listed.classes)) == listed.classes


def test_contents_are_names_below_the_root_and_sizes_of_each_class(tmp_path: Path) -> None:
    names = [f"training/{name}/{index}.png" for name in "ab" for index in range(1100)]  # more than one look-up's part
    write_files(tmp_path, *names)

    def contents(root: str | Path = tmp_path) -> dict[str, tuple[int, str]]:
        return list_images(root, "training").contents(root)

    whole = contents()
    assert {name: count for name, (count, _) in whole.items()} == {"a": 1100, "b": 1100}
    os.utime(tmp_path / names[0], (0, 0))
    with contextlib.chdir(tmp_path):
        assert contents(".") == contents() == contents(str(tmp_path)) == whole
    (tmp_path / names[0]).write_bytes(b"xx")
    larger = contents()
    assert (larger["a"] != whole["a"], larger["b"]) == (True, whole["b"])
    (tmp_path / names[-1]).rename(tmp_path / "training" / "b" / "other.png")
    renamed = contents()
    assert (renamed["a"], renamed["b"] != whole["b"]) == (larger["a"], True)


# What can be decoded


def noise() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("mode", "suffix"), [*((mode, "png") for mode in ("L", "RGBA", "P", "1", "LA")), ("L", "jpg"), ("CMYK", "jpg")]
)
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    original = Image.new("RGB", (24, 20), (90, 90, 90)) if suffix == "jpg" else noise()
    original = original.convert(mode)
    original.save(tmp_path / f"image.{suffix}")
    pixels = read_pixels(tmp_path / f"image.{suffix}")
    assert pixels is not None
    assert (pixels.shape, pixels.dtype) == ((20, 24, 3), np.uint8)
    expected = np.asarray(original.convert("RGB")).astype(int)
    assert np.abs(pixels - expected).max() <= (3 if suffix == "jpg" else 0)  # JPEG is lossy


def save_levels(path: Path, levels: np.ndarray, bits: int, order: str) -> None:
    """Write levels (H, W) as an image of one channel."""
    height, width = levels.shape
    if path.suffix == ".png":
        Image.fromarray(levels.astype(np.uint16)).save(path)
    elif path.suffix == ".ppm":
        path.write_bytes(f"P5\n{width} {height}\n65535\n".encode() + levels.astype(">u2").tobytes())
    else:
        packed = levels.astype(f"{order}u2").tobytes()
        if bits == 12:  # two levels in three bytes
            pairs = levels.reshape(-1, 2).astype(int)
            packed = bytes(byte for a, b in pairs for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))
        tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
        tags.append((279, len(packed)))
        head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(packed))
        entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
        path.write_bytes(head + packed + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize(
    ("name", "bits", "order"),
    [("a.png", 16, ">"), ("a.tif", 16, "<"), ("a.tif", 16, ">"), ("a.tif", 12, "<"), ("a.ppm", 16, ">")],
)
def test_levels_of_more_than_8_bits_are_scaled_by_their_range(tmp_path: Path, name: str, bits: int, order: str) -> None:
    ramp = np.arange(2**bits, dtype=np.int64).reshape(64, -1)
    save_levels(tmp_path / name, ramp, bits, order)
    pixels = read_pixels(tmp_path / name)
    assert pixels is not None
    assert (pixels == pixels[..., :1]).all()
    levels = pixels[..., 0].ravel().astype(int)
    assert (levels[0], levels[-1]) == (0, 255)
    assert np.bincount(levels).tolist() == [2 ** (bits - 8)] * 256  # as many of each
    assert (np.diff(levels) >= 0).all()
    assert refusal(tmp_path / name) is None
    # An 8-bit image that another program has brought to the full range, in either way, is itself again.
    shades = np.arange(256).reshape(16, 16)
    for wide in (shades << (bits - 8), np.rint(shades * ((2**bits - 1) / 255)).astype(int)):
        save_levels(tmp_path / name, wide, bits, order)
        again = read_pixels(tmp_path / name)
        assert again is not None
        assert np.array_equal(again[..., 0], shades)


@pytest.mark.parametrize(("mode", "kind"), [("I", np.int32), ("F", np.float32)])
def test_levels_of_no_known_range_are_refused_and_named(tmp_path: Path, mode: str, kind: type) -> None:
    Image.fromarray(np.linspace(0, 1, 20 * 24).reshape(20, 24).astype(kind)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif") is None
    assert refusal(tmp_path / "a.tif") == f"levels of mode {mode} have no known range: save it with 8 or 16 bits"


def test_an_orientation_in_the_exif_data_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    picture = noise()
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.getexif()[0x0112] == 6
    assert np.array_equal(read_pixels(tmp_path / "turned.png"), np.asarray(picture))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF"])
def test_a_truncated_file_is_unreadable_wherever_it_ends(tmp_path: Path, form: str) -> None:
    path, buffer = tmp_path / "image", io.BytesIO()
    noise().save(buffer, form)
    content = buffer.getvalue()
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        image = read_image(path)
        assert image is None or (image.size == (24, 20) and end > 0.9 * len(content)), end
    path.write_bytes(content)
    assert read_image(path) is not None


def test_what_is_no_image_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    for path in (tmp_path / "text.png", tmp_path / "none.png", tmp_path):
        assert read_pixels(path) is None
        assert refusal(path) is None  # it is damaged
