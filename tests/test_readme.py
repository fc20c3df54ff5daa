"""README and docs/ agree with the code: what they name is there, their commands resolve, their tables of keys are true.

A command with a config runs with `--show` behind it, which ends once the config is resolved.
"""

import functools
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from docs.key_tables import pages, with_tables
from suites.config import SuiteConfig
from suites.planning import resolve
from tests.tiny import REPOSITORY, succeed
from utils.config import build, parse_yaml

ROOMS = "configs|docs|benchmarks|results|models|data|embedding|evaluation|trainers|retrieval|suites|upgrade|utils|tests"
PROGRAMS = r"python|torchrun|make|timeout \d+ python|\./\w+\.sh"
TEXTS = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")]
}
EXAMPLES = {  # and their configs
    "upgrade_example.sh": "glyphs_upgrade",
    "upgrade_example_pgvector.sh": "glyphs_upgrade_pgvector",
    "text_example.sh": "texts_upgrade",
}


def commands_in(page: str) -> list[str]:
    """The commands of a page: lines of indented and of bash blocks, and what stands in backticks in a sentence."""
    text = page.replace("\\\n", " ")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"^ {4}(.*)", text, re.MULTILINE)
    sentences = [" ".join(code.split()) for code in re.findall(r"(?<!`)`((?:make|[^`]*\.py) [^`]+)`", text)]
    return [line.strip() for line in lines + sentences if re.match(rf"\s*(?:{PROGRAMS}) ", line)]


def commands_of_example() -> list[str]:
    """The commands of the worked examples in docs/, with the first value of each loop's variable."""
    runs: list[str] = []
    for name, config in EXAMPLES.items():
        example = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
        script = re.sub(r"\$\{?file\}?", "FILE", example.replace("\\\n", " "))
        for variable, value in re.findall(r"for (\w+) in (\w+)", script):
            script = re.sub(rf"\$\{{?{variable}\}}?", value, script)
        runs += re.findall(r"\brun (\w+\.py [^\"\n]*)$", script, re.MULTILINE)
        steps = re.findall(r"^ *upgrade (\w.*)$", script, re.MULTILINE)
        runs += [f"upgrade_gallery.py {step} --config configs/{config}.yaml" for step in steps]
    return [f"python {run}" for run in runs]


COMMANDS = sorted({line for text in TEXTS.values() for line in commands_in(text)} | set(commands_of_example()))


@functools.cache
def help_of(script: str) -> str:
    return succeed(script, "--help", cwd=REPOSITORY, processes=None)


def test_the_commands_are_found() -> None:
    assert {"make quickstart", "python prepare_dataset.py"} <= {line.split("  #")[0].strip() for line in COMMANDS}
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("command", COMMANDS)
def test_command_resolves(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("model", "DATA_ROOT"):  # of a loop in the shell
        monkeypatch.setenv(variable, "old")
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:])
        return
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
        assert all((REPOSITORY / word).exists() for word in words[3:] if re.match(rf"({ROOMS})/", word))
        return
    start = next(i for i, word in enumerate(words) if word.endswith((".py", ".sh")))
    script, arguments = words[start], words[start + 1 :]
    assert (REPOSITORY / script).is_file()
    if "--config" in arguments:
        shown = succeed(script, *arguments, "--show", cwd=REPOSITORY, processes=None)
        if script == "reproduce.py":
            resolve(build(SuiteConfig, parse_yaml(shown), source=command), REPOSITORY)
    elif script.endswith(".py"):
        flags = [word for word in arguments if word.startswith("--")]
        assert not flags or all(flag in help_of(script) for flag in flags)


@pytest.mark.parametrize("page", TEXTS)
def test_named_files_exist(page: str) -> None:
    text = TEXTS[page]
    named = set(re.findall(rf"(?<![\w/.])(?:{ROOMS})/[\w./-]+\.(?:yaml|md|py|png|json|sh)\b", text))
    scripts = set(re.findall(r"(?<![\w/])(\w+\.(?:py|sh))\b", text))
    missing = {name for name in named if not (REPOSITORY / name).is_file()}
    missing |= {script for script in scripts if not any([*REPOSITORY.glob(script), *REPOSITORY.glob(f"*/{script}")])}
    assert not missing


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[page]):
        path, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as in links to them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages())
def test_tables_of_keys_are_those_of_the_config_classes(page: str) -> None:
    text = TEXTS[f"docs/{page}"]
    assert with_tables(text, pages()[page]) == text, "run `python -m docs.key_tables`"
