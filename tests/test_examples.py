"""Every example runs as its first lines say, in a few steps instead of many."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import forgotten_plugins, record_of, tiny, wandb_rows, wandb_summary

import rl_research

_EXAMPLES = Path(__file__).parents[1] / "examples"
_PAGES = sorted(path.stem for path in _EXAMPLES.glob("*.py"))
_MOST_LINES = 80  # a page


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(_EXAMPLES.parent)
    with forgotten_plugins("examples"):
        yield


def _commands(page: str) -> list[list[str]]:
    """The commands in the first lines of an example, as words."""
    said = ast.get_docstring(ast.parse((_EXAMPLES / f"{page}.py").read_text())) or ""
    lines = said.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(("rl-research ", "python "))]


@pytest.mark.parametrize("page", _PAGES)
def test_an_example_is_a_page_that_says_how_to_run_it(page: str) -> None:
    """Each is short, names its command, and stands in the table of the examples."""
    assert len((_EXAMPLES / f"{page}.py").read_text().splitlines()) <= _MOST_LINES
    assert _commands(page)
    assert f"[{page}.py]({page}.py)" in (_EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=words[2]) for page in _PAGES for words in _commands(page) if words[1] == "train"]
)
def test_a_command_of_an_example_trains(words: list[str], tmp_path: Path) -> None:
    """What the example registers is trained with, and the checkpoint's policy acts."""
    record = rl_research.train([*tiny(tmp_path / "runs", "mine", "wandb=disabled"), *words[2:]])
    assert record.is_finished
    policy = rl_research.load_policy(str(record.run_dir), trust_plugins=True)
    assert policy.predict(policy.seen(3))[0].shape == (3,)
    with pytest.raises(rl_research.errors.ConfigError, match="--trust-plugins"):
        rl_research.load_policy(str(record.run_dir))


def test_the_callback_and_the_sink_do_what_they_say(tmp_path: Path) -> None:
    """The callback's count is in the rows, and the sink's file has each row once."""
    (words,) = _commands("callback")
    run_dir = Path(str(rl_research.train([*tiny(tmp_path / "runs", "mine", "wandb=disabled"), *words[2:]]).run_dir))
    steps = re.findall(r'"global_step": (\d+)', (run_dir / "rows.jsonl").read_text())
    assert steps == [str(step) for step in range(16, 97, 16)]
    assert "custom/falls" in (run_dir / "progress.csv").read_text().splitlines()[0]


def _example(page: str) -> Any:
    return importlib.import_module(f"examples.{page}")


def test_the_library_example(tmp_path: Path) -> None:
    """Three seeds are trained and listed, and the best one plays an episode."""
    words = tiny(tmp_path / "runs", None, "wandb=disabled")
    assert _example("library").main(words) > 0
    assert len(rl_research.list_runs()) == 3


@pytest.mark.parametrize(("page", "budget"), [("sb3_script", 256), ("plain_loop", 3)])
def test_a_script_logs(page: str, budget: int, tmp_path: Path) -> None:
    """The script's metrics are in an offline W&B run."""
    folder: Path = _example(page).main(budget)
    summary = wandb_summary(folder.parents[1])["summary"]
    assert folder.is_dir()
    assert {"sb3_script": "rollout/ep_rew_mean", "plain_loop": "train/loss"}[page] in summary
    assert tmp_path in folder.parents


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_the_own_flow(tmp_path: Path) -> None:
    """The flow trains, scores other poles in retried tasks, and logs the answers to the run; once more it is done."""
    flow = _example("own_flow").train_and_probe
    words = tiny(tmp_path / "runs", "mine", "wandb=offline")
    result = flow(words)
    assert result["status"] == "finished"
    run_dir = tmp_path / "runs" / "mine"
    probes = [key for key in wandb_summary(run_dir)["summary"] if key.startswith("probe/")]
    assert len(probes) == 3
    assert wandb_rows(run_dir)
    assert record_of(run_dir)["flow_run_id"]
    assert flow(words) == result
