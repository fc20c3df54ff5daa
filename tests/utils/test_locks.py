"""Locks keep other processes out where the file system knows locks, and are said to be missing where not."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from utils.locks import hold


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


def test_one_holds_alone_and_several_share(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second, third = (opened(path) for _ in range(3))  # each is held on its own, as in a process of its own
    hold(first, path, shared=True)
    hold(second, path, shared=True)
    with pytest.raises(BlockingIOError):
        hold(third, path)
    os.close(first)
    os.close(second)
    hold(third, path)
    fourth = opened(path)
    with pytest.raises(BlockingIOError):
        hold(fourth, path, shared=True)
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
