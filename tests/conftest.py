"""What holds for the whole test run."""

import pytest
import torch

# Tiny tensors gain nothing from threads; and a script that runs within this process computes the bits of one in a
# process of its own, which has one thread (tests/tiny.py).
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the tests that the default run leaves out or shortens.

    `--kills N`: how often the stress test of resumption kills each training script; without it, not at all.
    `--image-size N`: the pixels a side of the images of `tests/end_to_end/test_image_lists.py`; 224 takes minutes.
    `--all-networks`: every classification model of torchvision, not one of each kind.
    """
    parser.addoption("--all-networks", action="store_true", help="build, train and export every network of torchvision")
    parser.addoption("--kills", type=int, default=0, metavar="N", help="stress: SIGKILL each training N times")
    parser.addoption("--image-size", type=int, default=32, metavar="N", help="of the images of a list, in pixels")
