"""docs/extending.md: its commands and its code are true in the project that `rl-research init my_lab` writes."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from helpers import Call, forgotten_plugins

from rl_research.cli import command
from rl_research.config import load_config

_PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _PAGE, re.DOTALL | re.MULTILINE)


_COMMANDS = [shlex.split(line, comments=True)[1:] for block in _blocks("sh") for line in block.splitlines()]
_MODULES = {found[1]: block for block in _blocks("python") if (found := re.match(r"# my_lab/(\w+)\.py\n", block))}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Iterator[Path]:
    """The project, with the modules that the page shows, as the current folder."""
    monkeypatch.chdir(tmp_path)
    others = [path for path in sys.path if Path(path) != Path(__file__).parent]  # where tests have a my_lab, too
    with forgotten_plugins("my_lab"), monkeypatch.context() as patch:
        patch.setattr(sys, "path", others)
        assert call("init", "my_lab")[0] == 0
    for name, block in _MODULES.items():
        (tmp_path / "my_lab" / "my_lab" / f"{name}.py").write_text(block)
    monkeypatch.chdir(tmp_path / "my_lab")
    monkeypatch.syspath_prepend(tmp_path / "my_lab")
    with forgotten_plugins("my_lab"):
        yield tmp_path / "my_lab"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("words", _COMMANDS, ids=" ".join)
def test_a_command_of_the_page_is_right(words: list[str], call: Call) -> None:
    """Each command has a known verb and options, and overrides that compose in the project."""
    if words[0] == "train" and "--help" not in words:
        code, _, err = call(*words, "--cfg")
        assert code == 0, err
        return
    verb = command.verbs.commands[words[0]]
    with contextlib.suppress(click.exceptions.Exit):  # after --help
        verb.make_context(words[0], words[1:])


def test_the_configuration_of_the_page_composes(project: Path) -> None:
    """The YAML of the page is an experiment."""
    block = next(block for block in _blocks("yaml") if block.startswith("# @package _global_"))
    (project / "configs" / "experiment" / "shown.yaml").write_text(block)
    config = load_config(["config_dirs=[configs]", "experiment=shown"])
    assert (config.name, config.env.normalize) == (yaml.safe_load(block)["experiment"]["name"], True)


@pytest.mark.usefixtures("project")
def test_the_code_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of Python that are no modules run as printed, with a mean small evaluation."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    used: dict[str, Any] = {}
    for block in _blocks("python"):
        if block not in _MODULES.values():
            exec(compile(block, "extending.md", "exec"), used)
    assert used["record"].is_finished
    assert used["scores"].episodes == 20
    assert used["action"].shape == (1,)
    assert [run["run_id"] for run in used["runs"]] == ["mine"]
    assert used["train_and_probe"].name == "train-and-probe"


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines about the library in README run as printed, but for the length of the training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (block,) = re.findall(r"```python\n(import rl_research\n.*?)```", text, re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    used: dict[str, Any] = {}
    exec(compile(block.replace("20_000", "2_048"), "README.md", "exec"), used)
    assert used["record"].is_finished
    assert used["action"].shape == (1,)
