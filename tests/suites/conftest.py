"""What the tests of suites share."""

from pathlib import Path

import pytest

from tests.suites.fake_suite import write_suite


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fake suite, which is the current directory too."""
    write_suite(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
