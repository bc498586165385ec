"""`rl-research init`: what it writes trains, resumes, acts, deploys and tests itself, and overwrites nothing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Call, environment, forgotten_plugins

from rl_research.cli import command
from rl_research.config import load_config
from rl_research.orchestration import read

_SHORT = (
    "experiment.total_timesteps=256",
    "evaluation.every=128",
    "checkpoint.every=128",
    "evaluation.final_episodes=4",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Iterator[Path]:
    """A new project, which is the current folder; what its modules register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    assert call("init", "first_lab")[0] == 0
    monkeypatch.chdir(tmp_path / "first_lab")
    monkeypatch.syspath_prepend(tmp_path / "first_lab")
    with forgotten_plugins("first_lab"):
        yield tmp_path / "first_lab"


def test_the_project_trains_and_is_evaluated(project: Path, call: Call) -> None:
    """Its experiment trains with its own environment, wrapper and policy, and its checkpoint is scored again."""
    words = ("train", "--config-dir", "configs", "experiment=my_first", "run_id=first", "--json", *_SHORT)
    code, out, err = call(*words)
    assert code == 0, err
    record = json.loads((project / "runs" / "first" / "run.json").read_text())
    assert (json.loads(out)["status"], record["env"]) == ("finished", "first_lab/Corridor-v0")
    overrides = (project / "runs" / "first" / "overrides.txt").read_text().splitlines()
    assert overrides[:2] == ["config_dirs=['configs']", "experiment=my_first"]
    code, out, err = call("evaluate", "first@best", "--trust-plugins", "--json", "--episodes", "2")
    assert code == 0, err
    assert json.loads(out)["scores"]["episodes"] == 2
    assert "--trust-plugins" in call("evaluate", "first")[2]


def test_nothing_of_the_template_is_left(project: Path) -> None:
    """Every file and text has the project's name, and the README's commands are known."""
    files = [path for path in project.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {
        ".gitignore", "README.md", "pyproject.toml", "deployment.yaml", "my_first.yaml", "envs.py", "policies.py",
        "test_first_lab.py",
    }  # fmt: skip
    assert not [path for path in files if "my_lab" in path.name or "my_lab" in path.read_text()]
    (block,) = re.findall(r"```sh\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) == 5
    for words in commands[:4]:
        verb = command.verbs.commands[words[1]]
        assert verb.make_context(words[1], words[2:]) is not None


@pytest.mark.usefixtures("project")
def test_its_deployments_are_right() -> None:
    """Both schedules start flows of the installed package, with overrides that compose in the project's folder."""
    deployments = read(Path("deployment.yaml")).deployments
    assert [entry.schedules[0].slug for entry in deployments] == ["nightly", "weekly"]
    for entry in deployments:
        assert load_config(entry.parameters["overrides"]).name == "my_first"


@pytest.mark.slow
def test_its_own_tests_pass(project: Path) -> None:
    """`python -m pytest` in the project is green: the environment keeps the rules and the experiment learns."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=project, capture_output=True, text=True,
        timeout=300, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("my-lab", "Try my_lab."),
        ("3d", "Try lab_3d."),
        ("class", "Try lab_class."),
        ("torch", "Try torch_lab."),
        ("tests", "Try tests_lab."),
        ("..", "is an identifier"),
    ],
)
def test_a_name_that_is_no_package_is_refused(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """A name that Python cannot import, or that hides another package, is a line with one that would do."""
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    code, out, err = call("init", name)
    assert (code, out) == (2, "")
    assert hint in err
    assert list(tmp_path.iterdir()) == [tmp_path / "inner"]


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """What is in a folder stays as it is; an empty one is filled."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full_lab").mkdir()
    (tmp_path / "full_lab" / "mine.txt").write_text("mine")
    (tmp_path / "empty_lab").mkdir()
    code, out, err = call("init", "full_lab")
    assert (code, out, "not empty" in err) == (2, "", True)
    assert [path.name for path in (tmp_path / "full_lab").iterdir()] == ["mine.txt"]
    assert call("init", str(tmp_path / "empty_lab"))[0] == 0
