"""The layout on disk: which classes and files belong to a data set, and what can be decoded."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.folders import ImageList, hold_out, list_images, read_image, read_pixels
from utils.errors import UserError

RNG = np.random.default_rng(0)


def make_classes(root: Path, names: list[str], files: tuple[str, ...] = ("a.png",)) -> Path:
    for name in names:
        (root / "training" / name).mkdir(parents=True)
        for file in files:
            (root / "training" / name / file).touch()
    return root


def noise(height: int = 20, width: int = 24) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_old_models_classes_are_the_first_folders_sorted_as_strings(tmp_path: Path) -> None:
    make_classes(tmp_path, [str(label) for label in range(100)])
    listed = list_images(tmp_path, "training", num_classes=50)
    assert {int(name) for name in listed.classes} == {*range(6), *range(10, 54)}
    assert [path.parent.name for path in listed.paths] == [listed.classes[label] for label in listed.labels]
    assert sorted(set(listed.labels)) == list(range(50))


def test_images_of_a_class_are_listed_in_order_and_other_files_are_not(tmp_path: Path) -> None:
    files = ("c.png", "a.JPEG", "b.webp", "notes.txt", ".DS_Store", "png")
    make_classes(tmp_path, ["y", "x"], files)
    (tmp_path / "training" / "a_file").touch()
    listed = list_images(tmp_path, "training")
    assert listed.classes == ["x", "y"]
    assert [str(path.relative_to(tmp_path / "training")) for path in listed.paths] == [
        *("x/a.JPEG", "x/b.webp", "x/c.png"),
        *("y/a.JPEG", "y/b.webp", "y/c.png"),
    ]
    assert listed.labels == [0, 0, 0, 1, 1, 1]
    assert len(listed) == 6


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
    assert hold_out(whole, 0.5)[1].paths != held.paths
    with pytest.raises(UserError, match=r"dataset_params\.held_out: class a has 1 training images, too few"):
        hold_out(ImageList(paths[:1], [0], ["a"]), 0.5)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"dataset_params\.data_root: {tmp_path} has no folder `training`"):
        list_images(tmp_path, "training")
    make_classes(tmp_path, ["0", "1"])
    with pytest.raises(UserError, match="has no folder `validation`"):
        list_images(tmp_path, "validation")
    with pytest.raises(UserError, match=r"dataset_params\.num_classes: 3 classes asked for, .*training has 2"):
        list_images(tmp_path, "training", num_classes=3)
    (tmp_path / "validation").mkdir()
    with pytest.raises(UserError, match=r"validation has no class folders"):
        list_images(tmp_path, "validation")
    (tmp_path / "training" / "2").mkdir()
    with pytest.raises(UserError, match=r"the class folder .*training/2 holds no image"):
        list_images(tmp_path, "training")
    assert len(list_images(tmp_path, "training", num_classes=2)) == 2  # classes not asked for may be empty


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "LA"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    original = noise().convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    original.save(path)
    pixels = read_pixels(path)
    assert pixels is not None
    assert pixels.shape == (20, 24, 3)
    assert pixels.dtype == np.uint8
    if mode != "CMYK":  # JPEG is lossy
        assert np.array_equal(pixels, np.asarray(original.convert("RGB")))


def test_a_grayscale_jpeg_has_three_equal_channels(tmp_path: Path) -> None:
    noise().convert("L").save(tmp_path / "gray.jpg")
    pixels = read_pixels(tmp_path / "gray.jpg")
    assert pixels is not None
    assert (pixels == pixels[..., :1]).all()


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
    assert read_image(tmp_path / "text.png") is None
    assert read_image(tmp_path / "none.png") is None
    assert read_pixels(tmp_path) is None
