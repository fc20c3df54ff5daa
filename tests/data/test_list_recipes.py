"""The lines of docs/image_lists.md that write lists, run on folders laid out as the data sets are."""

import contextlib
import re
from pathlib import Path

import pytest

from data.folders import ImageList
from data.lists import list_from_file
from tests.tiny import REPOSITORY

PAGE = (REPOSITORY / "docs" / "image_lists.md").read_text(encoding="utf-8")
RECIPES = {
    re.findall(r'root = Path\("data_store/(.*?)"\)', code)[0]: code
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}
OF_SOP = "image_id class_id super_class_id path\n"
FILES = {
    "Stanford_Online_Products": {
        "Ebay_train.txt": f"{OF_SOP}1 1 1 bicycle_final/1_0.JPG\n2 2 1 bicycle_final/2_0.JPG\n",
        "Ebay_test.txt": f"{OF_SOP}3 11319 12 toaster_final/3_0.JPG\n",
    },
    "CUB_200_2011": {
        "images.txt": "1 001.Albatross/a.jpg\n2 100.Pelican/b.jpg\n3 101.Pelican/c.jpg\n",
        "image_class_labels.txt": "1 1\n2 100\n3 101\n",
    },
    "Market-1501": {
        "bounding_box_train/0002_c1s1_000451_03.jpg": "",
        "bounding_box_train/0007_c3s2_000001_01.jpg": "",
        "query/0001_c2s1_000001_00.jpg": "",
        "bounding_box_test/0000_c6s1_000002_01.jpg": "",
        "bounding_box_test/0001_c1s1_000002_02.jpg": "",
        "bounding_box_test/-1_c1s1_000003_01.jpg": "",
        "bounding_box_test/Thumbs.db": "",
    },
}
SOP, CUB, MARKET = FILES


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, dict[str, ImageList]]:
    """Data set -> split -> the images of the list that its recipe writes."""
    for name, files in FILES.items():
        for file, text in files.items():
            path = tmp_path / "data_store" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    found: dict[str, dict[str, ImageList]] = {}
    with contextlib.chdir(tmp_path):
        for name, code in RECIPES.items():
            exec(code, {})
            root = Path("data_store", name)
            found[name] = {
                split: list_from_file(root / "list.csv", root, split, training_split="train", all_classes=True)
                for split in (("train", "query", "gallery") if name == MARKET else ("train", "test"))
            }
    return found


def images(listed: ImageList) -> dict[str, str | None]:
    """Path below the data set's folder -> class."""
    classes = [listed.classes[label] if label >= 0 else None for label in listed.labels]
    return {"/".join(path.parts[2:]): name for path, name in zip(listed.paths, classes, strict=True)}


def test_the_recipes_write_the_splits_of_the_data_sets(lists: dict[str, dict[str, ImageList]]) -> None:
    assert list(lists) == list(FILES)
    assert images(lists[SOP]["train"]) == {"bicycle_final/1_0.JPG": "1", "bicycle_final/2_0.JPG": "2"}
    assert images(lists[SOP]["test"]) == {"toaster_final/3_0.JPG": "11319"}
    assert images(lists[CUB]["train"]) == {"images/001.Albatross/a.jpg": "1", "images/100.Pelican/b.jpg": "100"}
    assert images(lists[CUB]["test"]) == {"images/101.Pelican/c.jpg": "101"}
    market = lists[MARKET]
    assert list(images(market["train"]).values()) == ["2", "7"]
    assert images(market["query"]) == {"query/0001_c2s1_000001_00.jpg": "1"}
    gallery = {"bounding_box_test/0000_c6s1_000002_01.jpg": None, "bounding_box_test/0001_c1s1_000002_02.jpg": "1"}
    assert images(market["gallery"]) == gallery
    cameras = {split: listed.cameras for split, listed in market.items()}
    assert cameras == {"train": [0, 2], "query": [1], "gallery": [3, 0]}  # c1, c2, c3, c6
