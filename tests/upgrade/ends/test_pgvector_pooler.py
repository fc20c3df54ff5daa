"""Through PgBouncer, which gives each transaction to another session; where it is installed."""

import contextlib
import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.upgrade.ends.conftest import DSN, RECORD, Gallery, same, wait_until

POOLER = shutil.which("pgbouncer")
CONFIG = """
[databases]
{name} = host={host} port=5432 user=postgres
[pgbouncer]
pool_mode = transaction
server_round_robin = 1
auth_type = any
listen_addr =
unix_socket_dir = {folder}
logfile = {folder}/log
ignore_startup_parameters = extra_float_digits
"""


@pytest.fixture
def pooled(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gallery]:
    """The gallery, whose DSN leads through a pooler of transactions."""
    if POOLER is None:
        pytest.skip("pgbouncer is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        host = gallery.database.server.pgdata
        (folder / "config").write_text(CONFIG.format(name=gallery.database.name, host=host, folder=folder))
        user = ["-u", "pgserver"] if getpass.getuser() == "root" else []  # it does not run as root
        process = subprocess.Popen([POOLER, *user, str(folder / "config")], stderr=subprocess.DEVNULL)
        dsn = f"postgresql://postgres:@/{gallery.database.name}?host={folder}&port=6432"
        monkeypatch.setenv(DSN, dsn)
        try:
            wait_until((folder / ".s.PGSQL.6432").exists)
            yield gallery
        finally:
            process.terminate()
            process.wait()


def test_every_step_through_a_transaction_pooler(pooled: Gallery) -> None:
    with contextlib.ExitStack() as stack:  # transactions at the same time, for each of which it opens a session
        for _ in range(3):
            stack.enter_context(psycopg.connect(os.environ[DSN])).execute("SELECT 1")
    with psycopg.connect(os.environ[DSN], autocommit=True, prepare_threshold=None) as connected:
        sessions = {connected.execute("SELECT pg_backend_pid()").fetchone() for _ in range(20)}
    assert len(sessions) > 1
    store = pooled.store(index="hnsw", operator_class="halfvec_l2_ops")
    assert sum(len(batch) for batch in store.read_old(64)) == 500
    for shift in (0, 1):
        assert store.push(pooled.rows(shift=shift), RECORD) == 500
        assert same(pooled.database.vectors("embedding_new"), pooled.expected(shift=shift))
    store.cutover()
    assert same(pooled.database.vectors("embedding"), pooled.expected(shift=1))
    assert store.pushed() == replace(RECORD, cut_over=True)
    store.undo_cutover()
    assert store.info().rows == 500
