"""Stopped or killed anywhere, a run ends with the bits of one that nobody touched."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import Nursery, outcome, record_of, steps_committed, tiny, wandb_rows

from rl_research.config import Experiment, load_config
from rl_research.errors import ConfigError, Interrupted
from rl_research.runs.run import open_run
from rl_research.training import stages

# ---------------------------------------------------------------- stopped at a boundary, in this process

_PENDULUM = ("env=pendulum",)
_GSDE = ("algorithm.params.use_sde=true", "algorithm.params.sde_sample_freq=4")
_NORMALIZED = ("env.normalize=true",)
_THREE = ("env.n_envs=3",)
_OU = ("algorithm.params.action_noise={type: ornstein_uhlenbeck, std: 0.3}",)
_NORMAL = ("algorithm.params.action_noise={type: normal, std: 0.2}",)
_GOALS = (
    "env.id=space_envs:Goal-v0", "env.max_episode_steps=null", "algorithm.policy=MultiInputPolicy",
    "algorithm.params.replay_buffer_class=her",
)  # fmt: skip

CASES: dict[str, tuple[str, ...]] = {
    "ppo": (),
    "ppo 3": _THREE,
    "ppo 3 normalized": (*_THREE, *_NORMALIZED),
    "ppo gsde normalized": ("env=pendulum", *_GSDE, *_NORMALIZED),
    "ppo 3 gsde": ("env=pendulum", *_THREE, *_GSDE),
    "ppo linear": (
        "algorithm.params.learning_rate=lin_0.01",
        "algorithm.params.clip_range=lin_0.2",
        "experiment.total_timesteps=180",
    ),
    "ppo subproc normalized": ("env.n_envs=2", "env.vec_env=subproc", *_NORMALIZED),
    "ppo subproc spawn": ("env.n_envs=2", "env.vec_env=subproc", "env.start_method=spawn"),
    "ppo mujoco normalized": ("env.id=HalfCheetah-v5", *_NORMALIZED),
    "a2c": ("algorithm=a2c",),
    "a2c 3 normalized": ("algorithm=a2c", *_THREE, *_NORMALIZED),
    "a2c gsde": ("algorithm=a2c", "env=pendulum", *_GSDE),
    "trpo": ("algorithm=trpo",),
    "trpo 3 normalized": ("algorithm=trpo", "env=pendulum", *_THREE, *_NORMALIZED),
    "dqn": ("algorithm=dqn", "algorithm.params.target_update_interval=20"),
    "dqn 3 normalized": ("algorithm=dqn", *_THREE, *_NORMALIZED),
    "dqn n-step": ("algorithm=dqn", "algorithm.params.n_steps=3"),
    "dqn 3 n-step": ("algorithm=dqn", *_THREE, "algorithm.params.n_steps=3"),
    "dqn full buffer": ("algorithm=dqn", "algorithm.params.buffer_size=30"),
    "dqn episodes": ("algorithm=dqn", "algorithm.params.train_freq=[2,episode]"),
    "qrdqn": ("algorithm=qrdqn",),
    "qrdqn 3 normalized": ("algorithm=qrdqn", *_THREE, *_NORMALIZED),
    "sac": ("algorithm=sac", *_PENDULUM),
    "sac 3 normalized": ("algorithm=sac", *_PENDULUM, *_THREE, *_NORMALIZED),
    "sac gsde": ("algorithm=sac", *_PENDULUM, *_GSDE),
    "sac 3 gsde warmup": (
        "algorithm=sac", *_PENDULUM, *_THREE, *_GSDE, "algorithm.params.use_sde_at_warmup=true",
    ),
    "sac 3 mujoco": ("algorithm=sac", "env.id=Hopper-v5", *_THREE),
    "sac n-step": ("algorithm=sac", *_PENDULUM, "algorithm.params.n_steps=3"),
    "sac episodes": ("algorithm=sac", *_PENDULUM, "algorithm.params.train_freq=[1,episode]",
                     "algorithm.params.gradient_steps=-1"),
    "sac 8 steps": ("algorithm=sac", *_PENDULUM, "algorithm.params.train_freq=8"),
    "sac memory": (
        "algorithm=sac", *_PENDULUM, "algorithm.params.optimize_memory_usage=true",
        "algorithm.params.replay_buffer_kwargs={handle_timeout_termination: false}",
        "algorithm.params.buffer_size=50",
    ),
    "td3 ou": ("algorithm=td3", *_PENDULUM, *_OU),
    "td3 3 normal normalized": ("algorithm=td3", *_PENDULUM, *_THREE, *_NORMAL, *_NORMALIZED),
    "td3 3 ou": ("algorithm=td3", *_PENDULUM, *_THREE, *_OU),
    "ddpg normal": ("algorithm=ddpg", *_PENDULUM, *_NORMAL),
    "ddpg ou episodes": (
        "algorithm=ddpg", *_PENDULUM, *_OU, "algorithm.params.train_freq=[1,episode]",
    ),
    "ars": ("algorithm=ars", "algorithm.policy=MlpPolicy", "algorithm.params.learning_rate=lin_0.02"),
    "ars normalized": (
        "algorithm=ars", *_PENDULUM, "algorithm.policy=MlpPolicy", *_NORMALIZED, "env.max_episode_steps=9",
    ),
    "crossq": ("algorithm=crossq", *_PENDULUM),
    "crossq 3 normalized": ("algorithm=crossq", *_PENDULUM, *_THREE, *_NORMALIZED),
    "sac her": ("algorithm=sac", *_GOALS),
    "sac 3 her normalized": ("algorithm=sac", *_GOALS, *_THREE, *_NORMALIZED, "algorithm.params.learning_starts=24"),
    "ddpg her full buffer": ("algorithm=ddpg", *_GOALS, "algorithm.params.buffer_size=30"),
    "dqn her final": (
        "algorithm=dqn", *_GOALS, "env.kwargs={actions: Discrete}",
        "algorithm.params.replay_buffer_kwargs={n_sampled_goal: 2, goal_selection_strategy: final}",
    ),
    "maskable ppo": ("algorithm=maskable_ppo", "env.id=space_envs:Masked-v0"),
    "maskable ppo subproc": (
        "algorithm=maskable_ppo", "env.id=space_envs:Masked-v0", "env.n_envs=2", "env.vec_env=subproc",
    ),
    "recurrent ppo 3": ("algorithm=recurrent_ppo", *_THREE),
    "recurrent ppo gsde normalized": ("algorithm=recurrent_ppo", *_PENDULUM, *_GSDE, *_NORMALIZED),
    "tqc": ("algorithm=tqc", *_PENDULUM),
    "tqc 3 gsde": ("algorithm=tqc", *_PENDULUM, *_THREE, *_GSDE),
}  # fmt: skip


def _run(overrides: Sequence[str], stop_at: int | None = None) -> Path:
    """Train and score in this process; at *stop_at* the run is asked to stop, as a signal would."""
    config = load_config([*overrides, "wandb=disabled"])

    reports = 0

    def ask(step: int, _total: int) -> None:
        nonlocal reports
        reports += 1  # one when training starts, one at each rollout start: each segment gets somewhere
        if stop_at is not None and step >= stop_at and reports > 1 and not run.stop:
            run.stop.receive(signal.SIGTERM, None)

    with open_run(Experiment(config, tuple(overrides))) as run:
        checkpoint = stages.train_run(run, ask)
        assert stop_at is None or config.experiment.total_timesteps <= (run.record.global_step or 0)
        stages.score_checkpoint(run, checkpoint)
    return config.run_dir


def _stopped(overrides: Sequence[str], at: int) -> Path:
    """A segment that was asked to stop at step *at*, and did."""
    with pytest.raises(Interrupted):
        _run(overrides, at)
    _disturb_randomness(at)
    return load_config(overrides).run_dir


def _disturb_randomness(by: int) -> None:
    random.seed(by)
    np.random.seed(by + 1)
    torch.manual_seed(by + 2)
    for _ in range(3):
        random.random(), np.random.rand(), torch.rand(2)  # only the draw counts


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, case: str) -> None:
    """Stopped twice and resumed, a run has the result and the rows of an undisturbed one."""
    words = ("experiment.total_timesteps=192", *CASES[case])
    undisturbed = _run(tiny(tmp_path, "whole", *words))
    overrides = tiny(tmp_path, "stopped", *words)
    stopped = _stopped(overrides, 33)
    first = record_of(stopped)["global_step"]
    assert 33 <= first < 150
    manifest = json.loads((stopped / "checkpoints" / f"step-{first:09d}" / "manifest.json").read_text())
    assert manifest["resume_mode"] == "exact"
    _stopped(overrides, first)
    assert first < record_of(stopped)["global_step"] < 190
    _run(overrides)
    assert record_of(stopped)["status"] == "finished"
    assert outcome(stopped) == outcome(undisturbed)


def test_another_seed_gives_other_bits(tmp_path: Path) -> None:
    """The comparison above can fail: another seed ends elsewhere."""
    one = outcome(_run(tiny(tmp_path, "one")))
    two = outcome(_run(tiny(tmp_path, "two", "experiment.seed=1")))
    assert one["parameters_sha256"] != two["parameters_sha256"]


def test_stopping_often_costs_nothing(tmp_path: Path) -> None:
    """A run stopped at every single rollout ends with the same bits, too."""
    words = (*_THREE, *_NORMALIZED, "experiment.total_timesteps=240")
    undisturbed = _run(tiny(tmp_path, "whole", *words))
    overrides = tiny(tmp_path, "often", *words)
    for at in range(0, 144, 48):
        _stopped(overrides, at)
    assert record_of(tmp_path / "often")["global_step"] == 144
    assert outcome(_run(overrides)) == outcome(undisturbed)


@pytest.mark.parametrize("at", [80, 96], ids=["in the last rollout", "after training"])
def test_a_stop_near_the_end_costs_nothing(tmp_path: Path, at: int) -> None:
    """Stopped in its last rollout, or when only the final score is missing, a run still ends the same."""
    undisturbed = _run(tiny(tmp_path, "whole"))
    overrides = tiny(tmp_path, "late")
    _stopped(overrides, at)
    assert outcome(_run(overrides)) == outcome(undisturbed)


def test_evaluation_and_checkpoints_change_no_bit(tmp_path: Path) -> None:
    """Training ends with the same parameters with evaluation, films and periodic checkpoints, and without."""
    often = _run(tiny(tmp_path, "often", "video.enabled=true", "video.every=32", "video.max_steps=5"))
    never = _run(tiny(tmp_path, "never", "evaluation.enabled=false", "checkpoint.every=0"))
    key = "parameters_sha256"
    assert record_of(often)[key] == record_of(never)[key]


def test_the_newest_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """A damaged checkpoint costs the steps since the one before it, not the result."""
    undisturbed = _run(tiny(tmp_path, "whole"))
    overrides = tiny(tmp_path, "damaged")
    stopped = _stopped(overrides, 64)
    newest = max((stopped / "checkpoints").glob("step-*"))
    (newest / "model.zip").write_bytes(b"scrambled")
    assert outcome(_run(overrides)) == outcome(undisturbed)


@pytest.mark.parametrize("leftover", [".step-000000064.ab12.tmp", "step-000000090"])
def test_a_checkpoint_without_manifest_does_not_exist(tmp_path: Path, leftover: str) -> None:
    """What a killed commit leaves behind is neither resumed from nor in the way, and is swept."""
    undisturbed = _run(tiny(tmp_path, "whole"))
    overrides = tiny(tmp_path, "torn")
    stopped = _stopped(overrides, 33)
    torn = stopped / "checkpoints" / leftover
    torn.mkdir()
    (torn / "model.zip").write_bytes(b"half")
    assert outcome(_run(overrides)) == outcome(undisturbed)
    assert not torn.exists()


@pytest.mark.parametrize("place", [".", "checkpoints", "best_model"])
def test_what_a_killed_write_left_is_swept(tmp_path: Path, place: str) -> None:
    """A temporary file of a dead process is gone after the next segment, wherever it was being written."""
    overrides = tiny(tmp_path, "orphan")
    stopped = _stopped(overrides, 33)
    orphan = stopped / place / ".config.yaml.74d54fd3.tmp"
    orphan.write_bytes(b"half")
    _run(overrides)
    assert not orphan.exists()


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("experiment.seed=5", ("experiment.seed", "0", "5")),
        ("algorithm.params.gamma=0.5", ("algorithm.params.gamma", "0.5")),
        ("env=acrobot", ("env.id", "CartPole-v1", "Acrobot-v1")),
        ("env.n_envs=2", ("env.n_envs", "1", "2")),
        ("algorithm=a2c", ("algorithm.name", "ppo", "a2c")),
    ],
)
def test_another_experiment_is_refused_with_the_difference(tmp_path: Path, change: str, shown: tuple[str, ...]) -> None:
    """A run goes on only as what it began; the message names what differs, and nothing is touched."""
    overrides = tiny(tmp_path, "mine")
    stopped = _stopped(overrides, 33)
    steps = steps_committed(stopped)
    changed = tiny(tmp_path, "mine", change) if change != "algorithm=a2c" else [
        line for line in tiny(tmp_path, "mine", change) if "batch_size" not in line
    ]  # fmt: skip
    with pytest.raises(ConfigError) as refused:
        _run(changed)
    for part in ("run_id=mine", *shown):
        assert part in str(refused.value)
    assert steps_committed(stopped) == steps
    _run(overrides)
    assert record_of(stopped)["status"] == "finished"


def test_a_longer_budget_goes_on(tmp_path: Path) -> None:
    """A finished run with a larger budget trains the difference, and no row is repeated."""
    done = _run(tiny(tmp_path, "longer"))
    rows = outcome(done)["progress"]
    _run(tiny(tmp_path, "longer", "experiment.total_timesteps=160"))
    assert record_of(done)["global_step"] == 160
    after = outcome(done)["progress"]
    steps = [int(row["global_step"]) for row in after]
    assert steps == sorted(set(steps))
    assert after[: len(rows) - 1] == rows[:-1]


# ---------------------------------------------------------------- environments that cannot be captured

_seeds_seen: list[int | None] = []


class Stubborn(gym.Wrapper):  # type: ignore[type-arg]
    """CartPole that holds a lock and an open file, so that it cannot be pickled, and tells its seeds.

    Its pole grows from episode to episode, so that no replay brings it back.
    """

    def __init__(self, render_mode: str | None = None):
        super().__init__(gym.make("CartPole-v1", render_mode=render_mode).unwrapped)
        self.lock = threading.Lock()
        self.file = Path(os.devnull).open()  # noqa: SIM115  # held on purpose

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Note the seed."""
        _seeds_seen.append(seed)
        self.env.unwrapped.length += 0.01  # type: ignore[attr-defined]  # CartPole has it
        return self.env.reset(seed=seed, options=options)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()
        super().close()


gym.register("Stubborn-v0", entry_point=Stubborn, max_episode_steps=40)


@pytest.mark.parametrize(
    "words",
    [(), ("env.n_envs=2",), _NORMALIZED, ("algorithm=dqn",), ("algorithm=dqn", "env.n_envs=2")],
    ids=["ppo", "ppo 2", "ppo normalized", "dqn", "dqn 2"],
)
def test_an_uncapturable_environment_resumes_at_the_boundary(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Where an environment cannot be pickled the manifest says so; the next segment has its own seeds."""
    overrides = tiny(
        tmp_path, "boundary", *words, "env.id=Stubborn-v0", "evaluation.enabled=false",
        "experiment.total_timesteps=192",
    )  # fmt: skip
    _seeds_seen.clear()
    stopped = _stopped(overrides, 33)
    first = _seeds_seen[-1 - _seeds_seen[::-1].index(0) :]  # before that the environment was tried
    newest = max((stopped / "checkpoints").glob("step-*/manifest.json"))
    manifest = json.loads(newest.read_text())
    assert manifest["resume_mode"] == "boundary"
    assert "pickle" in manifest["resume_reason"]
    _seeds_seen.clear()
    _run(overrides)
    second = _seeds_seen[-1 - _seeds_seen[::-1].index(0) :][1:]
    assert not {*first} & {*second} - {None}, "the second segment would replay the episodes of the first"
    assert record_of(stopped)["status"] == "finished"
    assert record_of(stopped)["global_step"] >= 192
    steps = [int(row["global_step"]) for row in outcome(stopped)["progress"]]
    assert steps == sorted(set(steps))


def test_a_boundary_resume_is_itself_reproducible(tmp_path: Path) -> None:
    """Two runs stopped at the same step and resumed at the boundary end with the same bits."""
    results = []
    for name in ("one", "two"):
        overrides = tiny(tmp_path, name, "env.id=Stubborn-v0", "evaluation.enabled=false")
        _stopped(overrides, 33)
        results.append(outcome(_run(overrides)))
    assert results[0] == results[1]


@pytest.mark.slow
def test_w_and_b_tells_a_boundary_resume_s_steps_as_they_were_lived_last(tmp_path: Path) -> None:
    """Killed after steps that no checkpoint holds, a run has one row per step in W&B: progress.csv's."""
    overrides = tiny(
        tmp_path, "again", "env.id=Stubborn-v0", "evaluation.enabled=false", "checkpoint.every=48",
        "experiment.total_timesteps=160",
    )  # fmt: skip
    config = load_config(overrides)

    def kill(step: int, _total: int) -> None:
        if step >= 128:
            raise RuntimeError("as a kill would, without committing")

    with pytest.raises(RuntimeError), open_run(Experiment(config, tuple(overrides))) as run:
        stages.train_run(run, kill)
    first = dict(wandb_rows(config.run_dir))
    assert max(first) > max(steps_committed(config.run_dir))
    with open_run(Experiment(config, tuple(overrides))) as run:
        stages.train_run(run)
    rows = wandb_rows(config.run_dir)
    told = {int(row.pop("global_step")): row for row in outcome(config.run_dir)["progress"]}
    assert [step for step, _ in rows] == sorted(told)
    for step, row in rows:
        assert row == pytest.approx({key: float(value) for key, value in told[step].items()})
    assert any(row != first.get(step) for step, row in rows if step in first), "nothing was relived"


def test_a_boundary_resume_truncates_the_buffer_s_last_transition(tmp_path: Path) -> None:
    """No value is bootstrapped across the gap: the last transition before it is marked as timed out."""
    from stable_baselines3.common.buffers import ReplayBuffer

    overrides = tiny(
        tmp_path, "gap", "algorithm=dqn", "env.id=Stubborn-v0", "evaluation.enabled=false",
        "env.max_episode_steps=1000", "env.n_envs=2",
    )  # fmt: skip
    stopped = _stopped(overrides, 33)
    rows = record_of(stopped)["global_step"] // 2
    seen: list[ReplayBuffer] = []
    add = ReplayBuffer.add

    def watched(self: ReplayBuffer, *args: Any, **kwargs: Any) -> None:
        if not seen:
            seen.append(self)
            ends.extend(np.logical_or(self.timeouts[rows - 1], self.dones[rows - 1]).tolist())
        add(self, *args, **kwargs)

    ends: list[bool] = []
    ReplayBuffer.add = watched  # type: ignore[method-assign]
    try:
        _run(overrides)
    finally:
        ReplayBuffer.add = add  # type: ignore[method-assign]
    assert ends == [True, True]


# ---------------------------------------------------------------- one holder


def test_a_run_has_one_holder(tmp_path: Path) -> None:
    """A second opening of the same run is refused with the holder's name, and disturbs nothing."""
    overrides = tiny(tmp_path, "mine", "wandb=disabled")
    config = load_config(overrides)
    with open_run(Experiment(config, tuple(overrides))) as run:
        with pytest.raises(ConfigError, match=rf"run_id=mine: process {os.getpid()} "):  # noqa: SIM117
            with open_run(Experiment(config, tuple(overrides))):
                pass
        assert record_of(config.run_dir)["status"] == "running"
        stages.train_run(run)
    assert record_of(config.run_dir)["status"] == "finished"


# ---------------------------------------------------------------- killed processes

# Nets and rollouts are tiny, commits and evaluations frequent: a kill hits each of them.
_OFTEN = (
    "experiment.log_every=64", "evaluation.every=192", "checkpoint.every=128",
    "evaluation.episodes=2", "wandb=offline",
)  # fmt: skip
KILLED = {
    "ppo": (
        "env.n_envs=4", "env.normalize=true", *_OFTEN, "experiment.total_timesteps=3072",
        "algorithm.params.n_steps=16", "algorithm.params.batch_size=32",
        "algorithm.params.n_epochs=4",
    ),
    "sac": (
        "algorithm=sac", "env=pendulum", *_OFTEN, "experiment.total_timesteps=1024",
        "algorithm.params.buffer_size=700", "algorithm.params.batch_size=16",
        "algorithm.params.learning_starts=64",
    ),
    "her": (
        "algorithm=sac", *_GOALS, "env.n_envs=2", *_NORMALIZED, *_OFTEN, "experiment.total_timesteps=1024",
        "algorithm.params.buffer_size=300", "algorithm.params.learning_starts=64",
    ),
    "recurrent_ppo": (
        "algorithm=recurrent_ppo", "env.n_envs=2", *_NORMALIZED, *_OFTEN, "experiment.total_timesteps=1536",
        "algorithm.params.n_epochs=2", "algorithm.params.policy_kwargs.lstm_hidden_size=8",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """The warm process that segments are forked from."""
    warm = Nursery(tmp_path_factory.mktemp("nursery") / "stderr.txt")
    yield warm
    warm.close()


Undisturbed = Callable[[str], Path]


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of each killed experiment's run that nobody touched, made when first asked for."""
    folder, done = tmp_path_factory.mktemp("undisturbed"), {}

    def make(name: str) -> Path:
        if name not in done:
            assert nursery.run(tiny(folder, name, *KILLED[name])) == 0
            done[name] = folder / name
        return done[name]

    return make


def _assert_same(killed: Path, whole: Path) -> None:
    """The same result, and every W&B row once over all segments."""
    assert outcome(killed) == outcome(whole)
    rows, expected = wandb_rows(killed), wandb_rows(whole)
    steps = [step for step, _ in rows]
    assert len(steps) == len(set(steps)), f"twice: {sorted({s for s in steps if steps.count(s) > 1})}"
    assert sorted(steps) == sorted(step for step, _ in expected)
    for (step, cells), (_, others) in zip(
        sorted(rows, key=lambda row: row[0]), sorted(expected, key=lambda row: row[0]), strict=True
    ):
        assert cells == pytest.approx(others, nan_ok=True), f"at step {step}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("ppo", 12), ("sac", 10), ("her", 3), ("recurrent_ppo", 3)])
def test_a_killed_run_ends_with_the_same_bits(
    nursery: Nursery, undisturbed: Undisturbed, tmp_path: Path, name: str, kills: int
) -> None:
    """SIGKILL at random moments, over and over: the result and every row are those of an untouched run."""
    whole = undisturbed(name)
    chance = random.Random(sum(name.encode()))
    overrides = tiny(tmp_path, name, *KILLED[name])
    budget = record_of(whole)["global_step"]
    targets = sorted(chance.randrange(1, budget - 64) for _ in range(kills))
    codes, committed = [], []
    for target in targets:
        segment = nursery.start(overrides)
        segment.wait_for_step(target)
        threading.Event().wait(chance.uniform(0.0, 0.12))
        codes.append(segment.kill(with_wandb=chance.random() < 0.5))
        committed.append(max(steps_committed(tmp_path / name), default=0))
    assert codes == [-signal.SIGKILL] * kills
    assert committed == sorted(committed)
    assert len(set(committed)) > kills // 2, "the kills were spread over the run"
    assert nursery.run(overrides) == 0
    _assert_same(tmp_path / name, whole)
    assert len(list((tmp_path / name).glob("wandb/offline-run-*"))) == kills + 1


@pytest.mark.slow
def test_a_kill_before_any_disk_operation_of_a_commit_tears_nothing(
    nursery: Nursery, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Killed before any disk operation, in commits, evaluations and rewinds, a run still ends the same."""
    whole = undisturbed("sac")
    overrides = tiny(tmp_path, "sac", *KILLED["sac"])
    chance = random.Random(7)
    at = [chance.randrange(1, 70) for _ in range(8)]
    codes = [nursery.run(overrides, die_at=count) for count in at]
    assert codes == [-signal.SIGKILL] * len(at)
    assert nursery.run(overrides) == 0
    _assert_same(tmp_path / "sac", whole)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again(
    nursery: Nursery, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Without a checkpoint the run starts over, and what was logged before is not logged again."""
    whole = undisturbed("ppo")
    overrides = tiny(tmp_path, "ppo", *KILLED["ppo"])
    segment = nursery.start(overrides)
    segment.wait_for_step(64)
    segment.kill(with_wandb=True)
    assert nursery.run(overrides) == 0
    _assert_same(tmp_path / "ppo", whole)


@pytest.mark.slow
def test_a_run_finishes_on_another_machine(nursery: Nursery, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """With only the storage left and no run folder, the run goes on from there, to the same parameters."""
    whole = undisturbed("sac")
    here = tiny(tmp_path / "here", "sac", *KILLED["sac"])
    segment = nursery.start([*here, f"storage.url='{tmp_path / 'store'}'"])
    segment.wait_for_step(700)
    threading.Event().wait(0.5)
    segment.kill(with_wandb=True)
    stored = steps_committed(tmp_path / "store" / "sac")
    assert stored, "checkpoints are uploaded beside training"
    there = tiny(tmp_path / "there", "sac", *KILLED["sac"])
    assert nursery.run([*there, f"storage.url='{tmp_path / 'store'}'"]) == 0
    got, wanted = outcome(tmp_path / "there" / "sac"), outcome(whole)
    for key in ("parameters_sha256", "scores", "evaluations", "progress"):
        assert got[key] == wanted[key]


if sys.platform != "linux":  # process groups, /proc
    pytestmark = pytest.mark.skip(reason="needs Linux")
