"""Files are whole or absent, whatever happens while they are written."""

import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.files import atomic_path, files_below, sha256_of, sync, write_bytes, write_json, write_text, write_torch


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writers_write_what_they_say(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "folder" / "text", "é\n")
    assert (tmp_path / "new" / "folder" / "text").read_bytes() == "é\n".encode()
    write_json(tmp_path / "value.json", {"a": [1, None]})
    assert json.loads((tmp_path / "value.json").read_text()) == {"a": [1, None]}
    write_torch(tmp_path / "tensors.pt", {"a": torch.arange(3)})
    assert torch.load(tmp_path / "tensors.pt")["a"].tolist() == [0, 1, 2]
    write_bytes(tmp_path / "bytes", b"old")
    write_bytes(tmp_path / "bytes", b"new")
    assert (tmp_path / "bytes").read_bytes() == b"new"
    assert names(tmp_path) == ["bytes", "new", "tensors.pt", "value.json"]


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
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"file: no space left on the disk"):
        write_torch(path, torch.zeros(3))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_syncs_no_folders(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "file").touch()
    sync(tmp_path)
    sync(tmp_path / "file")
    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(code)):
        sync(tmp_path / "file")  # its content is not safe


def test_a_disk_that_fails_to_sync_a_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync(tmp_path)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_a_file_system_that_may_not_be_written(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **more: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=rf"file: cannot be written \({os.strerror(code)}\)"):
        write_text(tmp_path / "file", "a")


def test_a_name_that_is_no_utf_8_is_escaped_in_a_text(tmp_path: Path) -> None:
    write_text(tmp_path / "text", f"é {os.fsdecode(bytes([233]))}.png")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "é \\udce9.png"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "y" / "x", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"{path}: cannot be written"):
            write_text(path, "b")
    assert names(tmp_path) == ["file", "folder"]
    assert not names(tmp_path / "folder")


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


def test_sha256(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    folders = {}
    for name, moved in (("a", False), ("b", False), ("c", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("y" if moved else "x")).write_bytes(content)
        folders[name] = sha256_of(tmp_path / name)
    assert folders["a"] == folders["b"] != folders["c"]
    (tmp_path / "b" / "x").write_bytes(content[1:])
    assert sha256_of(tmp_path / "b") != folders["a"]


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
