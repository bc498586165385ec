"""What an environment does wrong is said in a line that names it, and it costs no more than it must."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_research.config import Config, Experiment
from rl_research.errors import ConfigError, EnvironmentFailed, EnvironmentFault
from rl_research.runs import open_run, read_record
from rl_research.training import envs, evaluation, preparation, run_all_stages, stages, train_run

TinyConfig = Callable[..., Config]
HERE = Path(__file__).parent
_LONG = ("env.n_envs=2", "experiment.total_timesteps=128", "evaluation.enabled=false")  # until a third episode


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes find the environments."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def _train(config: Config) -> None:
    with open_run(Experiment(config)) as run:
        train_run(run)


def _play(env: Any) -> None:
    """Play until a third episode has ended."""
    env.reset()
    for _ in range(60):
        env.step(np.array([0]))


def _workers() -> set[int]:
    """Return the processes that this one's fork server has started, and that live."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 3) for line in listed.stdout.splitlines()]
    servers = {pid for pid, parent, _, args in rows if "forkserver" in args and int(parent) == os.getpid()}
    return {int(pid) for pid, parent, state, _ in rows if parent in servers and not state.startswith("Z")}


# ---------------------------------------------------------------- what it raises


@pytest.mark.parametrize("vec_env", ["dummy", pytest.param("subproc", marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", ["runtime", "connection", "exit"])
def test_an_error_of_the_environment_is_told_in_its_own_words(
    tiny_config: TinyConfig, vec_env: str, error: str
) -> None:
    """The line has method, error, place and seed; the trace is the environment's alone; no worker is left."""
    kwargs = f"env.kwargs={{error: {error}}}"
    config = tiny_config("env.id=failing_envs:Raises-v0", kwargs, f"env.vec_env={vec_env}", *_LONG)
    with pytest.raises(EnvironmentFailed) as failed:
        _train(config)
    kind = {"runtime": "RuntimeError", "connection": "ConnectionResetError", "exit": "SystemExit"}[error]
    place = "env.id=Raises-v0, step 5 of episode 3 since the reset with seed 0"
    assert str(failed.value) == f"{place}: step() raised {kind}: simulator failed."
    assert failed.value.trace.count("Traceback") == 1
    assert "failing_envs.py" in failed.value.trace
    assert not any(package in failed.value.trace for package in ("rl_research/training", "stable_baselines3"))
    assert not _workers()
    record = read_record(config.run_dir)
    assert record is not None
    assert (record.status, record.error) == ("failed", str(failed.value))


def test_an_error_without_words_is_told_by_its_name(tiny_config: TinyConfig) -> None:
    """An exception whose own text raises is no bug of ours."""
    with pytest.raises(EnvironmentFailed, match=r"step\(\) raised _WithoutWords\.$"):
        _train(tiny_config("env.id=failing_envs:Raises-v0", "env.kwargs={error: words}", *_LONG))


@pytest.mark.parametrize("error", ["file", "exit", "words"])
def test_an_environment_that_cannot_be_made_is_told(tiny_config: TinyConfig, error: str) -> None:
    """Also if it is the second copy that cannot, as where a port is taken."""
    config = tiny_config("env.id=failing_envs:CannotBeMade-v0", f"env.kwargs={{error: {error}}}")
    for make in (preparation.preflight, envs.training_env, lambda config: envs.evaluation_env(config, 0, 1)):
        with pytest.raises(EnvironmentFailed, match=r"env.id=failing_envs:CannotBeMade-v0: its constructor raised"):
            make(config)


@pytest.mark.parametrize("vec_env", ["dummy", pytest.param("subproc", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("five numbers", "the observation, array.* does not have the form of its space"),
        ("no observation", "the observation, None, does not have"),
        ("a word", "the observation, 'word', does not have"),
        ("no info", "must return five values, the last of them a dict"),
        ("an episode", "'episode', where Stable-Baselines3 keeps"),
        ("success", "is_success must be true or false, not 'maybe'"),
    ],
)
def test_what_cannot_be_used_is_the_environment_s(tiny_config: TinyConfig, what: str, said: str, vec_env: str) -> None:
    """However late it returns that, the line names environment, step and seed."""
    env = envs.training_env(
        tiny_config("env.id=failing_envs:Returns-v0", f"env.kwargs={{what: {what}}}", f"env.vec_env={vec_env}")
    )
    with pytest.raises(EnvironmentFault, match=f"env.id=Returns-v0, step 5 of episode 3 since .* seed 0: .*{said}"):
        _play(env)
    env.close()


def test_an_info_that_cannot_be_copied_is_told(tiny_config: TinyConfig) -> None:
    """SB3 copies every info."""
    env = envs.training_env(tiny_config("env.id=failing_envs:Returns-v0", "env.kwargs={what: a lock}"))
    with pytest.raises(EnvironmentFault, match=r"cannot be copied, such as an object in its info: .*lock"):
        _play(env)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_with_its_signal(tiny_config: TinyConfig) -> None:
    """The line names worker and signal; the others end, too."""
    config = tiny_config("env.id=failing_envs:Dies-v0", "env.vec_env=subproc", *_LONG)
    with pytest.raises(EnvironmentFailed, match=r"worker [12] of 2 was ended by SIGKILL\. A machine .* memory"):
        _train(config)
    assert not _workers()


@pytest.mark.slow
def test_workers_that_do_not_close_are_ended(tiny_config: TinyConfig) -> None:
    """An environment whose `close` hangs holds nothing up for long, and no process outlives the run."""
    config = tiny_config("env.id=failing_envs:Hangs-v0", "env.vec_env=subproc", "env.n_envs=2")
    env = envs.training_env(config)
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 30
    assert not _workers()


@pytest.mark.slow
def test_workers_end_with_a_killed_trainer(tmp_path: Path) -> None:
    """After SIGKILL of the process that trains, its workers are gone within seconds."""
    code = (
        "import os, signal\nfrom rl_research.config import load_config\nfrom rl_research.training import envs\n"
        "words = ['env.id=failing_envs:Sound-v0', 'env.vec_env=subproc', 'env.n_envs=2']\n"
        "env = envs.training_env(load_config(words))\n"
        "print(*[process.pid for process in env.processes], flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    workers = [int(word) for word in done.stdout.split()]
    until = time.monotonic() + 20
    while (left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(workers) == 2, done.stderr
    assert not left


@pytest.mark.slow
def test_a_run_goes_on_after_as_many_failures_as_are_allowed(tiny_config: TinyConfig) -> None:
    """With ``env.restarts`` the run goes on at the boundary from its last checkpoint, and its record says why."""
    words = ("env.id=failing_envs:Raises-v0", "env.kwargs={seeds: [0]}", "env.restarts=1", "video.enabled=false")
    config = tiny_config(*words, "evaluation.enabled=false", "experiment.total_timesteps=96", wandb="offline")
    run = run_all_stages(Experiment(config))
    record = read_record(config.run_dir)
    assert record is not None
    assert record.status == "finished"
    assert [segment.after for segment in record.segments] == [None, "failed"]
    assert "simulator failed" in str(record.segments[1].error)
    (resumed,) = record.resume
    assert (resumed["resume_mode"], resumed["resumed_at"]) == ("boundary", 32)
    assert "simulator failed" in resumed["resume_reason"]
    steps = [int(line.split(",")[0]) for line in (run.dir / "progress.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))
    assert steps[-1] == 96


def test_a_failure_too_many_is_the_end(tiny_config: TinyConfig) -> None:
    """By default an environment fails once."""
    config = tiny_config("env.id=failing_envs:Raises-v0", "evaluation.enabled=false")
    with pytest.raises(EnvironmentFailed):
        run_all_stages(Experiment(config))
    record = read_record(config.run_dir)
    assert record is not None
    assert len(record.segments) == 1


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(("what", "said"), [("reward", "the reward is infinite"), ("observation", "NaN at index 1")])
@pytest.mark.parametrize("at", [5, 20])
@pytest.mark.parametrize("vec_env", ["dummy", pytest.param("subproc", marks=pytest.mark.slow)])
def test_numbers_that_are_not_finite_are_the_environment_s(
    tiny_config: TinyConfig, what: str, said: str, at: int, vec_env: str
) -> None:
    """The line names environment, step, seed and number, also at the last step of an episode."""
    kwargs = f"env.kwargs={{what: {what}, at: {at}}}"
    config = tiny_config("env.id=failing_envs:NotFinite-v0", kwargs, f"env.vec_env={vec_env}", *_LONG)
    with pytest.raises(EnvironmentFault) as fault:
        _train(config)
    assert f"env.id=NotFinite-v0, step {at} of episode 3 since the reset with seed 0" in str(fault.value)
    assert said in str(fault.value)
    assert "learning_rate" not in str(fault.value)


@pytest.mark.slow
def test_an_exact_resume_knows_its_step(tiny_config: TinyConfig) -> None:
    """The line counts steps and episodes from the run's start, not from the resume."""
    words = ("env.id=failing_envs:Raises-v0", "env.kwargs={at: 15}", *_LONG[1:], "env.n_envs=1")
    with open_run(Experiment(tiny_config(*words, "experiment.total_timesteps=48"))) as run:
        train_run(run)
    config = tiny_config(*words, "experiment.total_timesteps=96")
    with pytest.raises(EnvironmentFailed, match="step 15 of episode 3 since the reset with seed 0"):
        _train(config)


def test_a_word_is_said_before_a_long_episode_is_cut(tiny_config: TinyConfig, caplog: pytest.LogCaptureFixture) -> None:
    """An episode that may have 100,000 steps is named, with the remedy, after 10,000."""
    env = envs.evaluation_env(tiny_config("env.id=failing_envs:Endless-v0"), 0, 1)
    env.reset()
    for _ in range(10_000):
        env.step(np.array([0]))
    (said,) = [record.message for record in caplog.records if record.name.endswith("envs")]
    assert said.startswith("env.id=Endless-v0: an evaluation's episode has not ended within 10,000 steps")
    assert "env.max_episode_steps=N" in said


def test_an_episode_without_an_end_is_cut_in_evaluations(
    tiny_config: TinyConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """The score's episodes have `evaluation.max_steps` steps, and one line says so, with the remedy."""
    config = tiny_config("env.id=failing_envs:Endless-v0", "evaluation.max_steps=30")
    with open_run(Experiment(config)) as run:
        checkpoint = stages.train_run(run)
        scores = stages.score_checkpoint(run, checkpoint)
    assert scores is not None
    assert (set(scores.lengths), scores.cut) == ({30}, 4)
    said = [record.message for record in caplog.records if "env.max_episode_steps" in record.message]
    assert len(said) == 1 or len(set(said)) == len(said)
    assert "did not end within 30 steps" in said[0]


# ---------------------------------------------------------------- preflight


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("OldReset", (), r"`reset\(\)` must return a tuple"),
        ("OldStep", (), "must return five values"),
        ("NoSeed", (), "must accept a `seed`"),
        ("OtherShape", (), r"Expected: \(3,\), actual shape: \(5,\)"),
        ("FloatsForBytes", (), "does not match the data type"),
        ("Nested", ("algorithm.policy=MultiInputPolicy",), "Nested observation spaces"),
        ("FromOne", ("algorithm=dqn",), "non-zero start .*TransformAction"),
        ("FromOne", (), "non-zero start"),
        ("MultiFromOne", (), "non-zero start"),
        ("Scalar", (), "have no dimension"),
        ("WholeNumbers", (), "its actions are whole numbers"),
        ("NoRange", ("algorithm=sac",), "2 to 2 at index 1"),
        ("TooWide", ("algorithm=sac",), "at index 0, cannot be scaled"),
    ],
)
def test_what_breaks_the_api_is_refused_before_anything_is_written(
    tiny_config: TinyConfig, name: str, words: tuple[str, ...], said: str
) -> None:
    """Preflight names the environment, the fault and how to do without the check."""
    config = tiny_config(f"env.id=failing_envs:{name}-v0", *words)
    with pytest.raises(ConfigError, match=said) as refused:
        preparation.preflight(config)
    assert str(refused.value).startswith(f"env.id=failing_envs:{name}-v0: ")
    assert "env.check=false" in str(refused.value)
    assert not config.run_dir.exists()


def test_what_training_takes_is_not_refused(tiny_config: TinyConfig) -> None:
    """NumPy's scalars, lists and values out of bounds pass, and the run trains to its end."""
    config = tiny_config("env.id=failing_envs:Sloppy-v0", "evaluation.enabled=false")
    with preparation.preflight(config):
        pass
    _train(config)
    assert read_record(config.run_dir).global_step == 64  # type: ignore[union-attr]


def test_the_check_can_be_switched_off(tiny_config: TinyConfig) -> None:
    """With ``env.check=false`` nothing is stepped before training."""
    config = tiny_config("env.id=failing_envs:FromOne-v0", "env.check=false")
    with preparation.preflight(config) as prepared:
        assert prepared.config == config


# ---------------------------------------------------------------- one recipe


@pytest.mark.parametrize("normalize", ["false", "{norm_obs: false}", "true"])
@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_images_are_wrapped_alike_everywhere(
    tiny_config: TinyConfig, normalize: str, algorithm: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Images with their channels last train, are evaluated and scored, without a warning of SB3's."""
    words = ("env.id=failing_envs:Image-v0", f"algorithm={algorithm}", "algorithm.policy=CnnPolicy")
    config = tiny_config(
        *words, f"env.normalize={normalize}", "algorithm.params.policy_kwargs={net_arch: [8], normalize_images: false}",
        "experiment.total_timesteps=32", "evaluation.every=16", "checkpoint.every=0",
    )  # fmt: skip
    stacks = [envs.training_env(config), envs.evaluation_env(config, 0, 1), envs.film_env(config, 0)]
    assert len({tuple(_layers(env)) for env in stacks}) == 1
    for env in stacks:
        env.close()
    with open_run(Experiment(config)) as run:
        assert stages.score_checkpoint(run, stages.train_run(run)) is not None
    assert not [str(one.message) for one in recwarn if "not of the same type" in str(one.message)]


def _layers(env: Any) -> list[str]:
    return [type(env).__name__, *(_layers(env.venv) if hasattr(env, "venv") else [])]


# ---------------------------------------------------------------- films


@pytest.mark.parametrize(
    ("shown", "grey"), [("floats", 128), ("large_floats", 128), ("grey", 128), ("list", 128), ("booleans", 255)]
)
def test_a_frame_is_shown_as_it_looks(tiny_config: TinyConfig, shown: str, grey: int) -> None:
    """Fractions, wide floats, one channel, a list of frames and booleans become the same picture."""
    env = envs.film_env(tiny_config("env.id=failing_envs:Shows-v0", f"env.kwargs={{shown: {shown}}}"), 0)
    env.reset()
    frame = evaluation._frame(env)
    assert (frame.dtype, frame.shape) == (np.uint8, (64, 64, 3))
    assert abs(frame.astype(float).mean() - grey) <= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("env.id=failing_envs:NoRenderMode-v0",), "takes no argument render_mode"),
        *(
            (("env.id=failing_envs:Shows-v0", f"env.kwargs={{shown: {shown}}}"), said)
            for shown, said in [
                ("none", "shows nothing"),
                ("nothing", "shows nothing"),
                ("empty", "has shape"),
                ("text", "dtype"),
                ("growing", "ValueError"),
                ("raises", "no brush"),
                ("exits", "SystemExit: 5"),
            ]
        ),
    ],
)
def test_a_film_costs_no_run(
    tiny_config: TinyConfig, words: tuple[str, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails while a film is made, the run ends finished and one line has the true reason."""
    config = tiny_config(*words, "video.enabled=true", "evaluation.enabled=false")
    run = run_all_stages(Experiment(config))
    assert run.record.status == "finished"
    lines = [record.message for record in caplog.records if record.message.startswith("no film")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "MUJOCO_GL" not in lines[0]


def test_a_film_without_a_speed_has_the_usual_one(tiny_config: TinyConfig) -> None:
    """``render_fps`` of zero is shown at 30 frames a second."""
    env = envs.film_env(tiny_config("env.id=failing_envs:OddSpeed-v0"), 0)
    assert evaluation.frames_per_second(env) == 30
