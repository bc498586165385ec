"""What version 0.1 has written (tests/data/old_main, made by make_old_main.sh) is read and gone on from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import stable_baselines3
import torch
from helpers import Call, outcome, record_of, wandb_rows
from syncing import states, sync
from wandb_server import WandbServer

from rl_research import checkpoints
from rl_research.config import compose_experiment
from rl_research.report import write_report
from rl_research.sync import is_verified
from rl_research.training import run_all_stages

_DATA = Path(__file__).parent / "data" / "old_main"
_EXPECTED: dict[str, Any] = json.loads((_DATA / "expected.json").read_text())


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


_HERE = {
    "torch": torch.__version__,
    "numpy": numpy.__version__,
    "stable_baselines3": stable_baselines3.__version__,
    "machine": platform.machine(),
    "cpu": _processor(),
}
#: Bits are promised for the same versions on the same kind of processor; elsewhere the steps are compared.
_SAME_BITS = all(_EXPECTED["made_on"].get(key) == value for key, value in _HERE.items())


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old project, as the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(_DATA, folder)
    long_ago = time.time() - 3600  # the log of a killed run has no end: nobody is writing it any more
    for log in folder.glob("runs/*/wandb/*/*.wandb"):
        os.utime(log, (long_ago, long_ago))
    monkeypatch.chdir(folder)
    return folder


def _train(words: list[str]) -> Path:
    return run_all_stages(compose_experiment(words)).dir


def _assert_same(folder: Path, wanted: dict[str, Any]) -> None:
    found = json.loads(json.dumps(outcome(folder)))
    if _SAME_BITS:
        assert found == {key: wanted[key] for key in found}
    assert found["global_step"] == wanted["global_step"]
    assert [row["global_step"] for row in found["progress"]] == [row["global_step"] for row in wanted["progress"]]
    assert [step for step, _ in wandb_rows(folder)] == wanted["wandb_steps"]


@pytest.mark.parametrize("run_id", ["ppo", "sac"])
def test_an_interrupted_run_ends_with_the_same_bits(old: Path, run_id: str) -> None:
    """A run that the old code left half-way ends as the old code would have ended it, each row once."""
    folder = _train(_EXPECTED[run_id]["words"])
    _assert_same(folder, _EXPECTED[run_id])
    assert record_of(folder)["resume"][-1]["resume_mode"] == "exact"
    assert folder.resolve().is_relative_to(old)


def test_a_run_goes_on_from_its_store_alone(old: Path) -> None:
    """Checkpoints in an old store are resumed, verified and found by name without the run folder."""
    stored = _EXPECTED["stored"]
    words = [*stored["longer"]["words"], f"storage.url='{old / 'store'}'"]
    folder = _train(words)
    found = outcome(folder)
    assert found["global_step"] == stored["longer"]["global_step"]
    if _SAME_BITS:
        assert found["parameters_sha256"] == stored["longer"]["parameters_sha256"]
    names = [c.name for c in checkpoints.list_checkpoints(checkpoints.remote_store(str(old / "store"), {}, "stored"))]
    assert stored["best"] in names, "the best one is kept"


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(
    "reference", ["runs/ppo", "runs/sac", "runs/done", "runs/synced", "store/stored", "store/stored@best"]
)
def test_old_checkpoints_are_verified(call: Call, reference: str) -> None:
    """Every byte and the parameters of an old checkpoint are what its manifest says."""
    code, out, err = call("verify", reference, "--json")
    assert code == 0, err
    assert json.loads(out)["resume_mode"] == "exact"


@pytest.mark.parametrize("run_id", ["done", "synced"])
def test_a_finished_run_is_recognised(call: Call, old: Path, run_id: str) -> None:
    """The same command returns the stored result and trains nothing; its page can be written anew."""
    folder = old / "runs" / run_id
    words = (folder / "overrides.txt").read_text().splitlines()
    before = record_of(folder)
    code, out, err = call("train", "--json", *words)
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["status"], answer["parameters_sha256"]) == ("finished", _EXPECTED[run_id]["parameters_sha256"])
    assert answer["scores"]["episodes"] == len(_EXPECTED[run_id]["scores"])
    assert record_of(folder) == before
    assert "CartPole-v1" in write_report(folder).read_text()


def test_old_offline_runs_are_synced_once(old: Path, server: WandbServer) -> None:
    """What was synced stays so without a question; the others arrive whole, their records say where."""
    assert is_verified(old / "runs" / "synced")
    outcomes = sync(old / "runs")
    assert states(outcomes) == {"done": "synced", "ppo": "synced", "sac": "synced", "synced": "unchanged"}
    assert sorted(server.run_ids) == ["done", "ppo", "sac"]
    assert server.run("ppo").steps == sorted(set(server.run("ppo").steps))
    assert record_of(old / "runs" / "done")["wandb"]["url"] == outcomes["done"].url


def test_an_old_study_is_complete(call: Call, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call of an old study finds every member finished, and says what the first one said."""
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_ENABLED", "false")
    study = _EXPECTED["study"]
    settings = [word for setting in study["settings"] for word in ("--setting", " ".join(setting))]
    words = [*study["overrides"], "--seeds", ",".join(map(str, study["seeds"])), *settings]
    logs = {path: path.stat().st_mtime_ns for path in (old / "studies" / "small" / "logs").iterdir()}
    code, out, err = call("study", study["name"], "--json", *words)
    assert code == 0, err
    assert json.loads(out) == study["table"]
    assert {path: path.stat().st_mtime_ns for path in (old / "studies" / "small" / "logs").iterdir()} == logs


@pytest.mark.usefixtures("old")
def test_pruning_spares_what_is_not_delivered(call: Call) -> None:
    """Of old runs over a budget a delivered one gives up its heavy parts, an undelivered one nothing."""
    words = ("--budget", "150kB", "--older-than", "0h", "--local-checkpoints", "--dry-run", "--json")
    code, out, err = call("prune", "runs", *words)
    assert code == 0, err
    (place,) = json.loads(out)["places"]
    gone = {Path(removal["path"]).relative_to("runs").parts[0] for removal in place["removed"]}
    assert gone == {"synced"}


@pytest.mark.skipif(not _SAME_BITS, reason="bits are compared on the versions and the processor of the fixtures")
@pytest.mark.usefixtures("old")
def test_the_bits_of_cartpole_ppo_stay() -> None:
    """A short run of the quickstart's experiment has the parameters that version 0.1 gave it."""
    wanted = _EXPECTED["cartpole_ppo_2048"]
    folder = _train([*wanted["words"], "run_id=bits"])
    assert record_of(folder)["parameters_sha256"] == wanted["parameters_sha256"]
