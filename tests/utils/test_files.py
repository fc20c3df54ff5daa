"""Files are whole or absent, whatever happens while they are written."""

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from utils.errors import UserError
from utils.files import atomic_path, files_below, sha256_of, sync, write_bytes, write_json, write_text, write_torch


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def raises(code: int) -> Any:
    """A function of a path, say, that the system answers by an error."""

    def refuse(path: Any, *arguments: object, **more: object) -> NoReturn:
        raise OSError(code, os.strerror(code), str(path))

    return refuse


def test_writers_write_what_they_say(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "folder" / "text", f"é {os.fsdecode(bytes([233]))}.png\n")
    # A file's name that is no UTF-8 is escaped.
    assert (tmp_path / "new" / "folder" / "text").read_text(encoding="utf-8") == "é \\udce9.png\n"
    write_json(tmp_path / "value.json", {"a": [1, None]})
    assert json.loads((tmp_path / "value.json").read_text()) == {"a": [1, None]}
    write_torch(tmp_path / "tensors.pt", {"a": torch.arange(3)})
    assert torch.load(tmp_path / "tensors.pt")["a"].tolist() == [0, 1, 2]
    assert names(tmp_path) == ["new", "tensors.pt", "value.json"]


@pytest.mark.parametrize("error", [RuntimeError("torn"), KeyboardInterrupt(), OSError(errno.EIO, "bad disk")])
def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", raises(code))
    with pytest.raises(UserError, match=r"file: no space left on the disk"):
        write_torch(path, torch.zeros(3))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_folder_need_not_be_synced_where_the_file_system_knows_no_way_to(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        sync(path)
    monkeypatch.setattr(os, "fsync", raises(code))
    failing = [tmp_path / "file"]  # its content is not safe
    if code == errno.EIO:
        failing.append(tmp_path)
    else:
        sync(tmp_path)
    for path in failing:
        with pytest.raises(OSError, match=os.strerror(code)):
            sync(path)


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a")
    (tmp_path / "folder").mkdir()
    for name in ("file/x", "file/y/x", "folder", "x" * 300):
        path = tmp_path / name
        with pytest.raises(UserError, match=f"{path}: cannot be written"):
            write_text(path, "b")
    assert names(tmp_path) == ["file", "folder"]
    assert not names(tmp_path / "folder")
    monkeypatch.setattr(Path, "mkdir", raises(errno.EROFS))
    with pytest.raises(UserError, match=rf"new: cannot be written \({os.strerror(errno.EROFS)}\)"):
        write_text(tmp_path / "new", "a")


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([value]) * 200_000 for value in range(2)]
    write_bytes(path, contents[0])
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(20):
        write_bytes(path, contents[i % 2])
    stop.set()
    reader.join()
    assert seen
    assert set(seen) <= set(contents)


def test_processes_do_not_share_a_temporary_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_path(tmp_path / "file") as mine:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with atomic_path(tmp_path / "file") as other:
            assert mine != other
            assert mine.parent == other.parent == tmp_path  # a rename within one file system
            other.write_text("other")
        mine.write_text("mine")
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file"]


def test_sha256_is_of_the_content_and_of_a_folder_the_names_too(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    found = []
    for folder, name, written in (("a", "x", content), ("b", "x", content), ("c", "y", content), ("d", "x", b"")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(written)
        assert sha256_of(tmp_path / folder / name) == hashlib.sha256(written).hexdigest()
        found.append(sha256_of(tmp_path / folder))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_files_below_are_the_visible_ones_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("b", "a/c/x", "a/b", ".hidden", "a/.hidden/x", "@eaDir/x", "a/__MACOSX/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y").write_text("y")
    for name, target in (
        ("a/around", ".."),
        ("a/c/far", "../../.."),
        ("a/itself", "itself"),
        ("nowhere", "gone"),
        ("a/d", tmp_path / "elsewhere"),
        ("elsewhere", tmp_path / "elsewhere"),
    ):
        (root / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(root / "a")
    (tmp_path / "by_link").symlink_to("root")
    for start in (root, tmp_path / "by_link"):
        found = {name: status.st_size for name, status in files_below(start)}
        # Through `elsewhere/back` the folder `a` is another one's content, through `a/d/back` it would be its own.
        assert list(found) == [
            *("/a/b", "/a/c/x", "/a/d/y", "/b"),
            *("/elsewhere/back/b", "/elsewhere/back/c/x", "/elsewhere/y"),
        ]
        assert found["/a/c/x"] == len("a/c/x")
