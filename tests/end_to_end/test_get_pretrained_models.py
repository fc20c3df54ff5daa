"""get_pretrained_models.sh against a server on this machine: whole, resumed, damaged, absent."""

import io
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "get_pretrained_models.sh"
NOWHERE = "http://127.0.0.1:9/models"
NAMES = ["imagenet_250_simclr.pt", "imagenet_500_simclr.pt", "imagenet_1000_simclr.pt"]

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None and shutil.which("wget") is None, reason="needs curl or wget"
)


def archive(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:  # stored, so that damage stays within a member
        file.writestr(f"{name}/data.pkl", name.encode() * 5000)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves bytes by name, from the asked offset on, and remembers the offsets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {name: archive(name) for name in NAMES}
        self.offsets: dict[str, list[int]] = {name: [] for name in NAMES}
        self.url = f"http://127.0.0.1:{self.server_port}/models"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        offset = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if body:
            self.server.offsets[name].append(offset)
        self.send_response(206 if offset else 200)
        self.send_header("Content-Length", str(len(content) - offset))
        if offset:
            self.send_header("Content-Range", f"bytes {offset}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(content[offset:])

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(url: str, *command: str, **rest: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"REFILL_MODELS_URL": url, "no_proxy": "127.0.0.1"} | rest.pop("environment", {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **rest)


def fetch(folder: Path, url: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script, which fetches into `folder` and must end with the exit code `code`."""
    done = run(url, "bash", str(SCRIPT), environment={"REFILL_MODELS_DIR": str(folder), **environment})
    assert done.returncode == code, done.stderr
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_fetches_all_then_nothing(server: Server, tmp_path: Path) -> None:
    assert fetch(tmp_path, server.url).stdout.count("sha256") == 3
    assert contents(tmp_path) == server.files
    assert fetch(tmp_path, NOWHERE).stdout.count("is there already") == 3


# Prints what a shell has of its own; what changes with every command is left out.
WITNESS = """
witness() {
    pwd; shopt -p; set -o; trap; alias; declare -F
    declare -p | grep -v -E '^declare \\S+ (_|BASH_[A-Z]+|FUNCNAME|LINENO|PIPESTATUS|S?RANDOM|SECONDS|EPOCH.*)='
}
"""


@pytest.mark.parametrize("how", ["source ../repository/get_pretrained_models.sh", ". {script}"])
def test_sourced_it_fetches_into_the_repository_and_leaves_the_shell_as_it_was(
    server: Server, tmp_path: Path, how: str
) -> None:
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    for folder in (repository, elsewhere):
        folder.mkdir()
    command = how.format(script=shutil.copy(SCRIPT, repository))
    commands = f"""{WITNESS}
        cd {elsewhere}
        alias mv='mv -i'
        witness >before
        {command}
        echo "first $?"
        witness >after
        {command}
        echo "again $?"
        rm {repository}/checkpoints/{NAMES[1]}
        REFILL_MODELS_URL={NOWHERE}
        {command}
        echo "gone $?"
        {command} && echo never || echo "or $?"
    """
    shell = run(server.url, "bash", "--norc", "-i", input=commands)
    statuses = [line for line in shell.stdout.splitlines() if line.split(" ")[0] in ("first", "again", "gone", "or")]
    assert statuses == ["first 0", "again 0", "gone 2", "or 2"], shell.stderr
    assert (elsewhere / "before").read_text().count("\n") > 50
    assert (elsewhere / "after").read_text() == (elsewhere / "before").read_text()
    assert {path.name for path in elsewhere.iterdir()} == {"before", "after"}
    assert contents(repository / "checkpoints") == {name: server.files[name] for name in (NAMES[0], NAMES[2])}


@pytest.mark.parametrize("shell", ["bash", "sh", "zsh"])
def test_run_by_a_shell_from_another_folder(server: Server, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "repository").mkdir()
    shutil.copy(SCRIPT, tmp_path / "repository")
    result = run(server.url, shell, "repository/get_pretrained_models.sh", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "repository" / "checkpoints") == server.files


def test_resumes_where_a_download_stopped(server: Server, tmp_path: Path) -> None:
    content = server.files[NAMES[0]]
    (tmp_path / f"{NAMES[0]}.part").write_bytes(content[:1000])
    (tmp_path / f"{NAMES[1]}.part").write_bytes(server.files[NAMES[1]])
    fetch(tmp_path, server.url)
    assert contents(tmp_path) == server.files
    assert server.offsets == {NAMES[0]: [1000], NAMES[1]: [], NAMES[2]: [0]}


@pytest.mark.skipif(shutil.which("wget") is None, reason="needs wget")
def test_wget_serves_where_curl_is_not_installed(server: Server, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ["bash", "dirname", "tr", "awk", "wc", "wget", "sha256sum", "cut", "rm", "mkdir", "mv"]:
        (programs / name).symlink_to(shutil.which(name) or pytest.skip(f"needs {name}"))
    python = programs / "python3"  # no link: Python finds its library from where it lies
    python.write_text(f'#!{shutil.which("bash")}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / f"{NAMES[0]}.part").write_bytes(server.files[NAMES[0]][:1000])
    fetch(folder, server.url, PATH=str(programs))
    assert contents(folder) == server.files
    assert server.offsets[NAMES[0]] == [1000]


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("content", [b"<html>a captive portal</html>", damaged(archive(NAMES[1]))])
def test_a_damaged_file_is_refused_and_removed(server: Server, tmp_path: Path, content: bytes) -> None:
    server.files[NAMES[1]] = content
    result = fetch(tmp_path, server.url, code=2)
    assert f"{NAMES[1]}: what came from" in result.stderr
    assert "no intact TorchScript archive" in result.stderr
    assert list(contents(tmp_path)) == [NAMES[0]]


def test_a_part_longer_than_the_file_is_removed_and_offline_it_says_so(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAMES[0]}.part").write_bytes(server.files[NAMES[0]] + b"more")
    for url, message in [
        (server.url, "the server reports"),
        (NOWHERE, f"cannot reach {NOWHERE}/imagenet_250_simclr.pt; is there a network?"),
    ]:
        result = fetch(tmp_path, url, code=2)
        assert message in result.stderr
        assert not contents(tmp_path)
