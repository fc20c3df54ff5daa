"""Options of the whole test run."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--kills N`: how often the stress test of resumption kills each training script; without it, not at all."""
    parser.addoption("--kills", type=int, default=0, metavar="N", help="stress: SIGKILL each training N times")
