"""The source tree itself: contracts, no traces of a machine, docstrings, commands that parse."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from rl_research.cli import command
from rl_research.config import load_config

_ROOT = Path(__file__).parents[1]
_DOCUMENTS = [
    *sorted(_ROOT.glob("*.md")), *sorted((_ROOT / "docs").rglob("*.md")), _ROOT / "examples" / "README.md",
]  # fmt: skip
_OF_A_PROJECT = "extending.md"  # whose commands stand in tests/test_extending.py
# Spelt in pieces, so that this file passes its own test.
_TRACES = {
    "a machine's path": rf"(?<![\w.$}}])/(?:{'wor' + 'k'}|{'ro' + 'ot'}|{'tm' + 'p'}/lab|home/(?!lab/)\w+)/",
    "a package index": rf"--(?:extra-)?{'index' + '-url'}|{'trusted' + '-host'}",
    "a private address": r"\b(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}\b",
}


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [_ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_import_contracts_hold() -> None:
    """Imports run one way, and each foreign library has one home."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("what", _TRACES)
def test_no_file_knows_the_machine_it_was_written_on(what: str) -> None:
    """No tracked file names a path, an index or an address of somebody's machine."""
    pattern = re.compile(_TRACES[what])
    found = [
        f"{path.relative_to(_ROOT)}:{number}: {line.strip()[:120]}"
        for path in _tracked()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def _rooms() -> dict[str, set[str]]:
    """The packages of the library, each with the names of its modules."""
    packages = [path.parent for path in (_ROOT / "rl_research").glob("*/__init__.py")]
    return {package.name: {module.stem for module in package.glob("*.py")} for package in packages}


def _imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of each import of ours in *path*."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rl_research"):
            yield from ((node.lineno, str(node.module), alias.name) for alias in node.names)


def test_packages_import_what_others_export() -> None:
    """A package takes from another one what its ``__init__`` exports, and knows nothing of its modules."""
    rooms = _rooms()
    open_to_all = {"flows"}  # one flow per module, named like it
    found = []
    for path in [*(_ROOT / "rl_research").rglob("*.py"), *(_ROOT / "flows").glob("*.py")]:
        own = "flows" if path.parent.name == "flows" else path.relative_to(_ROOT / "rl_research").parts[0]
        for line, module, name in _imports(path):
            parts = [*module.split(".")[1:], name]
            if parts[0] not in rooms or parts[0] in {own, *open_to_all} or own in ("callbacks.py", "utils"):
                continue
            if len(parts) > 2 or (len(parts) == 2 and parts[1] in rooms[parts[0]]):
                found.append(f"{path.relative_to(_ROOT)}:{line}: {module} {name}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("room", sorted(_rooms()))
def test_every_export_is_there(room: str) -> None:
    """Each name that a package's stub promises can be imported, and hides none of its modules."""
    stub = _ROOT / "rl_research" / room / "__init__.pyi"
    package = importlib.import_module(f"rl_research.{room}")
    promised = [
        alias.name
        for node in ast.walk(ast.parse(stub.read_text() if stub.exists() else ""))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert len(promised) == len(set(promised))
    assert not set(promised) & _rooms()[room]
    for name in promised:
        assert getattr(package, name) is not None


def _commands(document: Path) -> Iterator[list[str]]:
    """The words of each ``rl-research`` command in the fenced shell blocks of *document*."""
    text = document.read_text()
    for block in re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z][A-Z_]*=.*", words[0]):
                del words[0]
            if words and words[0].rpartition("/")[2] == "rl-research":
                yield words[1:]


def _documented() -> list[Any]:
    return [
        pytest.param(words, id=f"{document.name}: {' '.join(words)[:60]}")
        for document in _DOCUMENTS
        if document.name != _OF_A_PROJECT
        for words in _commands(document)
    ]


@pytest.mark.parametrize("words", _documented())
def test_documented_commands_parse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every documented ``rl-research`` command has a known verb, known options, overrides that compose."""
    if words[0] == "train":
        assert command.main([*words, "--cfg"]) == 0
        capsys.readouterr()
        return
    verb = command.verbs.commands[words[0]]
    with contextlib.suppress(click.exceptions.Exit):  # after --help
        verb.make_context(words[0], words[1:])
    capsys.readouterr()


def _override_lists(value: Any) -> Iterator[list[str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "overrides" and isinstance(inner, list):
                yield inner
            else:
                yield from _override_lists(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _override_lists(inner)


def test_deployments_compose() -> None:
    """The overrides of each scheduled deployment describe an experiment."""
    found = list(_override_lists(yaml.safe_load((_ROOT / "deployment.yaml").read_text())))
    assert found
    for overrides in found:
        load_config(overrides)
