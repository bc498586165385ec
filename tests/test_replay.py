"""What cannot be pickled is replayed: a killed run ends with the same bits, or says why it does not."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Nursery, outcome, record_of, steps_committed, tiny, wandb_config

from rl_research.config import Experiment, load_config
from rl_research.errors import Interrupted
from rl_research.runs import open_run
from rl_research.training import stages

HERE = Path(__file__).parent
_DQN = ("algorithm=dqn", "env.kwargs={discrete: true}")


class _Killed(BaseException):
    """What ends a segment without a commit, as SIGKILL would."""


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes find the environments."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def _words(runs_dir: Path, run_id: str, env: str, *words: str) -> list[str]:
    name = f"replayed_envs:{env}-v0" if env.isalpha() else env
    return tiny(
        runs_dir, run_id, f"env.id={name}", "experiment.total_timesteps=192", "evaluation.enabled=false",
        "wandb=disabled", *words,
    )  # fmt: skip


def _run(overrides: list[str], stop_at: int | None = None, kill_at: int | None = None) -> Path:
    """Train in this process; it is asked to stop at a step, or ends there without another commit."""
    config = load_config(overrides)
    reports = 0

    def on_progress(step: int, _total: int) -> None:
        nonlocal reports
        reports += 1  # one when training starts: each segment gets somewhere
        if reports > 1 and stop_at is not None and step >= stop_at and not run.stop:
            run.stop.receive(signal.SIGTERM, None)
        if reports > 1 and kill_at is not None and step >= kill_at:
            raise _Killed

    with open_run(Experiment(config, tuple(overrides))) as run:
        stages.train_run(run, on_progress)
    return config.run_dir


def _manifest(run_dir: Path, step: int = -1) -> dict[str, Any]:
    found = max(run_dir.glob("checkpoints/step-*/manifest.json")) if step < 0 else None
    path = found or run_dir / "checkpoints" / f"step-{step:09d}" / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


CASES = {
    "ppo": ("Held", ()),
    "ppo 2 normalized": ("Held", ("env.n_envs=2", "env.normalize=true")),
    "dqn 2": ("Held", (*_DQN, "env.n_envs=2")),
    "sac": ("Held", ("algorithm=sac",)),
    "out of reach": ("Hidden", ()),
    "out of reach sac 2": ("Hidden", ("algorithm=sac", "env.n_envs=2", "env.normalize=true")),
    "wrapped 2": ("Nudged", ("env.n_envs=2",)),
    "frames": ("Held", ("env.wrappers=[{FrameStackObservation: {stack_size: 2}}]",)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_replayed_run_ends_with_the_same_bits(tmp_path: Path, case: str) -> None:
    """Stopped once and killed once, a run has the result and the rows of an undisturbed one."""
    env, words = CASES[case]
    undisturbed = _run(_words(tmp_path, "whole", env, *words))
    overrides = _words(tmp_path, "killed", env, *words)
    with pytest.raises(Interrupted):
        _run(overrides, stop_at=40)
    with pytest.raises(_Killed):
        _run(overrides, kill_at=120)
    killed = _run(overrides)
    assert outcome(killed) == outcome(undisturbed)
    record = record_of(killed)
    assert [how["resume_mode"] for how in record["resume"]] == ["replay", "replay"]
    manifest = _manifest(killed)
    assert (manifest["resume_mode"], record["resume_mode"]) == ("replay", "replay")
    by = "the seed of its episode" if env == "Hidden" else "the random state at its last reset"
    assert manifest["resume_reason"] == (
        f"the environment cannot be pickled: TypeError cannot pickle '_thread.lock' object; it is replayed from {by}"
    )


@pytest.mark.parametrize(
    ("env", "word", "said"),
    [
        ("Harder", "env.n_envs=1", "it is not replayed, for a second copy differs"),
        ("Drifting", "env.n_envs=1", "it is not replayed, for a second copy differs"),
        ("Drifting", "env.kwargs={after: 60}", "replayed, its last episode gives other observations or rewards"),
        (
            "Held",
            "env.replay=false",
            "the environment cannot be pickled: TypeError cannot pickle '_thread.lock' object",
        ),
    ],
    ids=["counts its resets", "by chance", "by chance, seen at the first checkpoint", "not wanted"],
)
def test_an_environment_that_a_replay_does_not_bring_back_resumes_at_the_boundary(
    tmp_path: Path, env: str, word: str, said: str
) -> None:
    """Its checkpoints say boundary and why from the first one on; the run goes on in new episodes."""
    overrides = _words(tmp_path, "boundary", env, word, "checkpoint.every=96", "wandb=offline")
    with pytest.raises(Interrupted):
        _run(overrides, stop_at=100)
    run_dir = tmp_path / "boundary"
    for step in steps_committed(run_dir):
        assert _manifest(run_dir, step)["resume_mode"] == "boundary"
        assert _manifest(run_dir, step)["resume_reason"].endswith(said)
    record = record_of(_run(overrides))
    assert record["status"] == "finished"
    assert record["resume"][0]["resume_mode"] == "boundary"
    assert wandb_config(run_dir)["resume"]["resume_reason"].endswith(said)


def test_a_replay_that_leads_elsewhere_is_a_boundary_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a replay that was proven does not come to the same place on this machine, resume says so."""
    overrides = _words(tmp_path, "moved", "Elsewhere", "env.n_envs=2", "wandb=offline")
    with pytest.raises(Interrupted):
        _run(overrides, stop_at=100)
    assert _manifest(tmp_path / "moved")["resume_mode"] == "replay"
    assert wandb_config(tmp_path / "moved")["resume"]["resume_mode"] == "replay"
    monkeypatch.setenv("OTHER_MACHINE", "0.01")
    (resumed,) = record_of(_run(overrides))["resume"]
    assert resumed["resume_mode"] == "boundary"
    assert resumed["resume_reason"] == "replayed, its last episode gives other observations or rewards"
    assert _manifest(tmp_path / "moved")["resume_mode"] == "replay", "of an episode that began here"


def test_an_episode_that_is_too_long_to_be_kept_is_left_at_the_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actions are kept up to a bound; the manifest names it."""
    monkeypatch.setattr("rl_research.training.restorable._LONGEST", 8)
    monkeypatch.setattr("rl_research.training.restorable._TRIED", 4)
    run_dir = _run(_words(tmp_path, "long", "Held", "checkpoint.every=1", "checkpoint.keep_last=20"))
    modes = {_manifest(run_dir, step)["resume_mode"] for step in steps_committed(run_dir)}
    assert modes == {"replay", "boundary"}


@pytest.mark.slow
def test_worker_processes_replay_their_own(tmp_path: Path) -> None:
    """With env.vec_env=subproc, each worker keeps and brings back its environment's episode."""
    words = ("env.n_envs=2", "env.vec_env=subproc")
    undisturbed = _run(_words(tmp_path, "whole", "Hidden", "env.n_envs=2"))
    overrides = _words(tmp_path, "workers", "Hidden", *words)
    with pytest.raises(_Killed):
        _run(overrides, kill_at=120)
    killed = _run(overrides)
    assert record_of(killed)["resume"][0]["resume_mode"] == "replay"
    assert outcome(killed) == outcome(undisturbed)


# ---------------------------------------------------------------- real simulators, killed again and again


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """The warm process that segments are forked from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        warm = Nursery(tmp_path_factory.mktemp("nursery") / "stderr.txt")
    yield warm
    warm.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("needs", "env", "kwargs", "by"),
    [
        ("Box2D", "LunarLander-v3", "{}", "the random state at its last reset"),
        ("ale_py", "ale_py:ALE/Pong-v5", "{obs_type: ram}", "the seed of its episode"),
    ],
    ids=["LunarLander", "Pong"],
)
def test_a_simulator_killed_ten_times_ends_with_the_same_bits(
    tmp_path: Path, nursery: Nursery, needs: str, env: str, kwargs: str, by: str
) -> None:
    """LunarLander and Pong, killed in the middle of their episodes, end as if nobody had."""
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed: pip install 'rl-research[{needs.partition('_')[0].lower()}]'")
    words = (f"env.kwargs={kwargs}", "env.max_episode_steps=400", "experiment.total_timesteps=448")
    undisturbed = _run(_words(tmp_path, "whole", env, *words))
    overrides = _words(tmp_path, "killed", env, *words)
    for kill_at in (48, 80, 112, 144, 208, 240, 304, 336):
        with pytest.raises(_Killed):
            _run(overrides, kill_at=kill_at)
    for kill_at in (368, 416):
        segment = nursery.start(overrides)
        segment.wait_for_step(kill_at)
        assert segment.kill(with_wandb=False) == -signal.SIGKILL
    killed = _run(overrides)
    assert outcome(killed) == outcome(undisturbed)
    record = record_of(killed)
    assert [how["resume_mode"] for how in record["resume"]] == ["replay"] * 10
    assert by in record["resume_reason"]
