"""A study: many runs as one object, each in a process of its own, and none trained twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from flow_runs import until
from helpers import record_of, steps_committed, tiny

from rl_research.errors import ConfigError, Interrupted
from rl_research.report.study_page import study_markdown, write_study
from rl_research.runs.lease import leased_folder
from rl_research.statistics.intervals import iqm
from rl_research.studies import plan_study, processes, run_members, study_result
from rl_research.system.signals import StopRequest

_QUIET = StopRequest(5.0)


def _words(tmp_path: Path, *more: str) -> list[str]:
    return tiny(tmp_path / "runs", None, "wandb=disabled", *more)


def _without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let members be trained by the library alone, which takes a second instead of twenty."""
    start = processes.subprocess.Popen

    def popen(command: list[str], **more: Any) -> Any:
        program = (
            "import sys\n"
            "from rl_research.config import compose_experiment\n"
            "from rl_research.training import stages\n"
            "from rl_research.runs.run import open_run\n"
            "with open_run(compose_experiment(sys.argv[1:])) as run:\n"
            "    checkpoint = stages.train_run(run); stages.score_checkpoint(run, checkpoint)\n"
        )
        return start([sys.executable, "-c", program, *command[4:]], **more)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)


def test_identities_come_from_names_and_words(tmp_path: Path) -> None:
    """The same study has the same runs each time; other words, settings or seeds are other runs."""

    def ids(*more: str, grid: Any = ((),)) -> list[str]:
        return [m.run_id for m in plan_study("s", _words(tmp_path, *more), [0, 1], grid).members]

    assert ids() == ids()
    assert len({*ids(), *ids("env=acrobot"), *ids(grid=[["algorithm.params.gamma=0.5"]])}) == 6
    assert all(re.fullmatch(r"s-[0-9a-f]{6}-s[01]", run_id) for run_id in ids())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": []}, "one at least"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"name": "a b"}, "as its name"),
        ({"name": "x" * 41}, "1 to 40"),
        ({"grid": [["experiment.seed=1"]]}, "gives each member its own"),
        ({"overrides": ["run_id=mine"]}, "gives each member its own"),
        ({"overrides": ["experiment.sed=1"]}, "experiment.seed"),
        ({"grid": [["env=acrobot"], ["env=acrobot"]]}, "are the same"),
    ],
)
def test_mistakes_come_before_training(change: dict[str, Any], said: str) -> None:
    """Whatever a member would be refused for is said before the first one starts."""
    given = {"name": "s", "overrides": [], "seeds": [0], "grid": (), **change}
    with pytest.raises(ConfigError, match=said):
        plan_study(**given)


@pytest.mark.slow
def test_members_use_an_api_only_while_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for before each; one that is silent is not handed on, also not by the environment."""
    _without_prefect(monkeypatch)
    start, used = processes.subprocess.Popen, []

    def popen(command: list[str], **more: Any) -> Any:
        used.append(more["env"].get("PREFECT_API_URL"))
        return start(command, **more)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = iter(["http://127.0.0.1:1/api", None])
    study = plan_study("served", _words(tmp_path), [0, 1])
    run_members(study, _QUIET, find_api=lambda: next(found))
    assert used == ["http://127.0.0.1:1/api", None]
    assert study_result(study)["failed"] == []


@pytest.mark.slow
def test_a_study_runs_each_member_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting and seed is trained, one that fails hinders nobody, and nothing is trained again."""
    _without_prefect(monkeypatch)
    study = plan_study("small", _words(tmp_path), [0, 1, 2])
    broken = study.members[0].config.run_dir
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where a folder should be")
    run_members(study, _QUIET, at_a_time=2)
    result = study_result(study)

    assert result["failed"] == [study.members[0].run_id]
    (setting,) = result["settings"]
    scores = {str(m.seed): m.record.scores.mean for m in study.members[1:]}
    assert setting["scores"] == scores
    assert setting["iqm"] == iqm(list(scores.values()))
    assert setting["interval"] is None
    assert "a file stands" in (study.folder / "logs" / f"{study.members[0].run_id}.log").read_text()

    broken.unlink()
    made = {m.run_id: record_of(m.config.run_dir)["finished_at"] for m in study.members[1:]}
    run_members(study, _QUIET, at_a_time=2)
    again = study_result(study)
    assert again["failed"] == []
    assert len(again["settings"][0]["interval"]) == 2
    assert {m.run_id: record_of(m.config.run_dir)["finished_at"] for m in study.members[1:]} == made
    assert json.loads((study.folder / "study.json").read_text()) == again
    assert study.steps == 3 * 96
    page = write_study(again).read_text()
    assert "<svg" in page
    for member in study.members:
        assert f"runs/{member.run_id}/report.html" in page
    assert "3 of 3" in study_markdown(again)


@pytest.mark.slow
def test_a_stop_reaches_the_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop, a study waits until its members have committed, and says how far they are."""
    _without_prefect(monkeypatch)
    total = "experiment.total_timesteps=1000000"
    study = plan_study("long", _words(tmp_path, total, "evaluation.enabled=false"), [0, 1])
    stop = StopRequest(5.0)
    folder = study.members[0].config.run_dir

    def later() -> None:
        until(lambda: len(steps_committed(folder)) > 1)
        stop.by = signal.SIGTERM

    thread = threading.Thread(target=later)
    thread.start()
    with pytest.raises(Interrupted, match=r"study long stopped at \d+ steps"):
        run_members(study, stop)
    thread.join()
    assert record_of(folder)["status"] == "interrupted"
    assert study.steps == record_of(folder)["global_step"] > 0
    assert not study.members[1].config.run_dir.exists()


@pytest.mark.slow
def test_a_member_in_other_hands_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed study has left running is not started a second time beside itself."""
    _without_prefect(monkeypatch)
    study = plan_study("held", _words(tmp_path), [0])
    folder = study.members[0].config.run_dir
    folder.mkdir(parents=True)
    done = threading.Thread(target=run_members, args=(study, _QUIET))
    with leased_folder(folder):
        done.start()
        done.join(2.0)
        assert done.is_alive()
        assert not (folder / "run.json").exists()
    done.join(60.0)
    assert record_of(folder)["status"] == "finished"


@pytest.mark.slow  # starts a Prefect API and a process per member
def test_the_command_runs_a_study(tmp_path: Path) -> None:
    """`rl-research study` trains its members as flow runs, and answers with the table."""
    command = [sys.executable, "-m", "rl_research", "study", "cli", *_words(tmp_path)]
    done = subprocess.run(
        [*command, "--seeds", "0", "--setting", "algorithm.params.gamma=0.9", "--json"],
        capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["settings"][0]["setting"] == "algorithm.params.gamma=0.9"
    (run_dir,) = result["settings"][0]["runs"].values()
    assert record_of(Path(run_dir))["flow_run_id"]


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_a_study_with_a_failed_member_shows_what_it_came_to(tmp_path: Path, as_json: bool) -> None:
    """Table or JSON object, how many are not finished, the last line of each one's log, and exit code 1."""
    settings = [f"--setting=algorithm.params.learning_rate={rate}" for rate in ("1e30", "1e-3")]
    command = [sys.executable, "-m", "rl_research", "study", "part", *_words(tmp_path), "--seeds=0", *settings]
    command += ["--json"] if as_json else []
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 of 2 members are not finished" in done.stderr
    assert re.search(r"part-\w+-s0: rl-research: diverged at step", done.stderr)
    assert "Traceback" not in done.stderr
    if as_json:
        (failed,) = json.loads(done.stdout)["last_lines"].values()
        assert "diverged" in failed
    else:
        assert "| `algorithm.params.learning_rate=1e-3` |" in done.stdout
