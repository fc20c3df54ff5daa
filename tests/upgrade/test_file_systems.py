"""Galleries where the file system knows no locks, syncs no folders, or may only be read."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from tests.tiny import fail, files_in, run_script, succeed
from tests.upgrade.conftest import BATCH, Case, prepared
from upgrade.batches import apply_batch
from upgrade.gallery import Gallery

CONFIG = ("--config", "upgrade.yaml")
VERIFIED = "every row is what transform or a batch made of it"


def test_without_locks_every_step_says_so_and_goes_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    case.write_batch("first.npz", range(20))
    for step in (("transform",), ("plan",), BATCH, ("status", "--verify"), ("rollback",)):
        done = run_script("upgrade_gallery.py", *step, *CONFIG, cwd=case.folder, processes=None)
        assert done.returncode == 0, done.stderr
        assert "note: upgraded is on a file system without locks: nothing shows or keeps out a second" in done.stderr


def test_folders_that_cannot_be_synced(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    prepared(case)
    case.run(*BATCH)
    assert VERIFIED in case.run("status", "--verify")


def test_a_gallery_that_may_only_be_read_can_be_checked_and_is_not_changed(upgraded: Case) -> None:
    folder = upgraded.folder / "upgraded"
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = files_in(upgraded.folder)
    assert VERIFIED in succeed("upgrade_gallery.py", "status", "--verify", *CONFIG, cwd=upgraded.folder)
    for step in ("transform", "plan"):
        error = fail("upgrade_gallery.py", step, *CONFIG, cwd=upgraded.folder)
        assert error == "error: output: upgraded cannot be written (Permission denied)"
    assert files_in(upgraded.folder) == before


def test_a_copy_without_its_lock_can_be_checked(upgraded: Case) -> None:
    (upgraded.folder / "upgraded" / "lock").unlink()
    assert VERIFIED in upgraded.run("status", "--verify")
    assert not (upgraded.folder / "upgraded" / "lock").exists()


def test_a_batch_that_is_not_finished_is_finished_before_it_is_checked(
    upgraded: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(upgraded.folder)
    apply_batch(Gallery.open(Path("upgraded")), upgraded.write_batch("batch.npz", range(20)))
    assert (upgraded.folder / "upgraded" / "pending").exists()
    assert VERIFIED in upgraded.run("status", "--verify")
    assert not (upgraded.folder / "upgraded" / "pending").exists()


@pytest.mark.parametrize(("place", "reason"), [("sealed/up", "Permission denied"), ("old.npz/up", "Not a directory")])
def test_an_output_that_cannot_be_made(case: Case, place: str, reason: str) -> None:
    (case.folder / "sealed").mkdir(mode=0o555)
    error = fail("upgrade_gallery.py", "transform", *CONFIG, f"output={place}", cwd=case.folder)
    assert error == f"error: output: {place} cannot be written ({reason})"
