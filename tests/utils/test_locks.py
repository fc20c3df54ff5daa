"""Locks keep other processes out where the file system knows locks, and are said to be missing where not."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from utils.locks import hold


def test_one_holds_alone_and_several_share(tmp_path: Path) -> None:
    # Each is held on its own, as in a process of its own.
    first, second, third = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(3))
    hold(first, tmp_path, shared=True)
    hold(second, tmp_path, shared=True)
    with pytest.raises(BlockingIOError):
        hold(third, tmp_path)
    os.close(first)
    os.close(second)
    hold(third, tmp_path)
    fourth = os.open(tmp_path / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        hold(fourth, tmp_path, shared=True)
    os.close(third)
    os.close(fourth)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_says_so_and_goes_on(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unknown)
    hold(-1, tmp_path)
    assert capsys.readouterr().err == (
        f"note: {tmp_path} is on a file system without locks: nothing shows or keeps out a second run\n"
    )


def test_any_other_error_is_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        hold(10**6, tmp_path)
