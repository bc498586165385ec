"""SB3's and W&B's callbacks by their own names: in environment steps, and without a trace in training."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from wandb.integration.sb3 import WandbCallback as TheirWandbCallback

from rl_research import callbacks, checkpoints
from rl_research.checkpoints import Scores
from rl_research.config import Config
from rl_research.storage.store import Store
from rl_research.tracking.logger import ExperimentLogger
from rl_research.tracking.rows import RowWriter
from rl_research.training import envs, models

TinyConfig = Callable[..., Config]
Rows = list[tuple[int, dict[str, Any]]]

ON = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
OFF = {"learning_starts": 8, "batch_size": 8, "buffer_size": 500}


def _arguments(tiny: dict[str, int], **changes: Any) -> dict[str, Any]:
    """Arguments for a small network, made anew because SB3 writes into `policy_kwargs`."""
    return {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, **tiny, **changes}


def _ppo(n_envs: int = 1, env: str = "CartPole-v1", **changes: Any) -> PPO:
    return PPO("MlpPolicy", make_vec_env(env, n_envs, seed=0), **_arguments(ON, **changes))


def _dqn(n_envs: int = 1, **changes: Any) -> DQN:
    env = make_vec_env("CartPole-v1", n_envs, seed=0)
    return DQN("MlpPolicy", env, **_arguments(OFF, exploration_final_eps=0.5, **changes))


def _sac(n_envs: int = 1, **changes: Any) -> SAC:
    env = make_vec_env("Pendulum-v1", n_envs, seed=0)
    return SAC("MlpPolicy", env, **_arguments(OFF, **changes))


def _normalized_ppo(n_envs: int = 1) -> PPO:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs, seed=0))
    return PPO("MlpPolicy", env, **_arguments(ON))


MODELS: dict[str, Callable[..., BaseAlgorithm]] = {"ppo": _ppo, "dqn": _dqn, "sac": _sac}


@pytest.fixture
def evaluated(tiny_config: TinyConfig) -> Iterator[Callable[..., VecEnv]]:
    """A factory of evaluation environments that are closed in the end."""
    opened: list[VecEnv] = []

    def make(*overrides: str, first_seed: int = 5_000, copies: int = 1) -> VecEnv:
        opened.append(envs.evaluation_env(tiny_config(*overrides), first_seed, copies))
        return opened[-1]

    yield make
    for env in opened:
        env.close()


class Spy(callbacks.BaseCallback):
    """Keeps the rows that reach SB3's output formats."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Rows = []
        self.writer = RowWriter(lambda row, step: self.rows.append((step, dict(row))))

    def _on_training_start(self) -> None:
        self.model.logger.output_formats.append(self.writer)

    def _on_training_end(self) -> None:
        self.writer.flush()


# ---------------------------------------------------------------- the same arguments


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    return {k: p for k, p in inspect.signature(cls.__init__).parameters.items() if k != "self"}


def _values(**given: Any) -> dict[str, Any]:
    return given


@pytest.mark.parametrize("how", ["by name", "by position"])
@pytest.mark.parametrize("name", ["EvalCallback", "CheckpointCallback"])
def test_every_argument_of_sb3_is_taken(evaluated: Callable[..., VecEnv], tmp_path: Path, name: str, how: str) -> None:
    """Whatever SB3's callback of this name takes, ours takes: by name, by position, and keeps it."""
    theirs, ours = getattr(sb3, name), getattr(callbacks, name)
    example = {
        "eval_env": evaluated(),
        "callback_on_new_best": sb3.StopTrainingOnRewardThreshold(1.0),
        "callback_after_eval": sb3.StopTrainingOnNoModelImprovement(3),
        "save_freq": 12,
        "save_path": str(tmp_path),
        "name_prefix": "mine",
        "log_path": str(tmp_path),
        "best_model_save_path": str(tmp_path),
    }
    given = {k: example.get(k, p.default) for k, p in _parameters(theirs).items()}
    assert inspect.Parameter.empty not in given.values(), "SB3 has a new required argument"
    made = ours(**given) if how == "by name" else ours(*given.values())
    original = theirs(**{**given, "callback_on_new_best": None} if "callback_on_new_best" in given else given)
    for key in set(given) & set(vars(original)) - {"callback_on_new_best", "callback", "save_path"}:
        assert getattr(made, key) == getattr(original, key), key


@pytest.mark.parametrize("name", ["EvalCallback", "CheckpointCallback"])
def test_what_sb3_asks_for_is_enough(evaluated: Callable[..., VecEnv], tmp_path: Path, name: str) -> None:
    """Only what SB3 requires is required; the other arguments have SB3's meaning by default."""
    required = {"EvalCallback": (evaluated(),), "CheckpointCallback": (100, str(tmp_path))}[name]
    ours, theirs = getattr(callbacks, name)(*required), getattr(sb3, name)(*required)
    quiet = {"verbose", "save_vecnormalize", "save_path", "eval_env"}  # documented to differ, or made anew
    for key in set(vars(theirs)) & set(vars(ours)) - quiet:
        assert getattr(ours, key) == getattr(theirs, key), key


def test_every_argument_of_wandb_s_callback_is_taken(quiet_logger: ExperimentLogger) -> None:
    """Ours takes what `wandb.integration.sb3.WandbCallback` takes, in its order and with its defaults."""
    theirs, ours = _parameters(TheirWandbCallback), _parameters(callbacks.WandbCallback)
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {k: ours[k].default for k in theirs} == {k: p.default for k, p in theirs.items()}
    made = callbacks.WandbCallback(1, "models", 5, 6, "gradients", logger=quiet_logger)
    assert (made.verbose, made.model_save_path, made.model_save_freq) == (1, "models", 5)
    assert (made.gradient_save_freq, made.log) == (6, "gradients")


def test_the_video_callback_of_sb3_s_guide_can_be_replaced() -> None:
    """Ours takes the arguments of the `VideoRecorderCallback` in SB3's documentation, in their order."""
    names = ["eval_env", "render_freq", "n_eval_episodes", "deterministic"]
    ours = _parameters(callbacks.VideoRecorderCallback)
    assert list(ours)[:4] == names
    assert (ours["n_eval_episodes"].default, ours["deterministic"].default) == (1, True)


# ---------------------------------------------------------------- self.logger


class Theirs(sb3.BaseCallback):
    """The pattern of the guide on SB3's base."""

    def __init__(self, logger: Any):
        super().__init__()
        self.logger = logger  # type: ignore[misc]

    def _on_step(self) -> bool:
        self.logger.append(self.n_calls)
        return True


class Ours(callbacks.BaseCallback):
    """The pattern of the guide on our base."""

    def __init__(self, logger: Any = None):
        super().__init__()
        if logger is not None:
            self.logger = logger

    def _on_step(self) -> bool:
        if isinstance(self.logger, list):
            self.logger.append(self.n_calls)
        else:
            self.logger.record("custom", self.n_calls)
        return True


def test_a_logger_can_be_assigned() -> None:
    """``self.logger = …`` works on our base; on SB3's it fails, which is why ours exists."""
    with pytest.raises(AttributeError, match="logger"):
        Theirs([])
    calls: list[int] = []
    _ppo().learn(16, callback=Ours(calls))
    assert calls == list(range(1, 17))


def test_an_empty_logger_is_a_logger() -> None:
    """What was assigned is used even if it is falsy; without an assignment SB3's own logger is there."""
    empty, callback = Ours([]), Ours()
    given = empty.logger
    model = _ppo()
    spy = Spy()
    model.learn(16, callback=[spy, callback, empty])
    assert callback.logger is model.logger
    assert [row["custom"] for _, row in spy.rows] == [16]
    assert empty.logger is given
    assert given == list(range(1, 17))


def test_the_base_alone_is_a_callback() -> None:
    """A subclass needs to define nothing it has no use for: training is the same, and nothing is recorded."""

    class Idle(callbacks.BaseCallback):
        pass

    spy, idle = Spy(), Idle()
    model = _ppo().learn(16, callback=[spy, idle])
    alone = _ppo().learn(16)
    assert idle.n_calls == model.num_timesteps == alone.num_timesteps == 16
    assert idle.model is model
    assert idle.logger is model.logger
    assert all(name.startswith(("rollout/", "time/", "train/")) for _, row in spy.rows for name in row)
    for one, other in zip(model.policy.parameters(), alone.policy.parameters(), strict=True):
        assert one.equal(other)


# ---------------------------------------------------------------- frequencies in environment steps


@pytest.mark.parametrize("n_envs", [1, 3, 4])
@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_evaluations_come_every_so_many_environment_steps(
    evaluated: Callable[..., VecEnv], kind: str, n_envs: int
) -> None:
    """The first moment at or after each multiple of `eval_freq` environment steps, whatever `n_envs` is."""
    callback = callbacks.EvalCallback(evaluated(), n_eval_episodes=1, eval_freq=40, verbose=0)
    steps: list[int] = []
    callback.on_scores = lambda scores, step: steps.append(step)
    total = MODELS[kind](n_envs).learn(192, callback=callback).num_timesteps
    expected = [-(-at // n_envs) * n_envs for at in range(40, total + 1, 40)]
    assert steps == callback.evaluations_timesteps == expected


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_at_rollout_starts_evaluations_wait_for_the_update(
    evaluated: Callable[..., VecEnv], kind: str, n_envs: int
) -> None:
    """With `at_rollout_start` an evaluation waits for the rollout's end, and the last one is not lost."""
    callback = callbacks.EvalCallback(evaluated(), n_eval_episodes=1, eval_freq=40, at_rollout_start=True)
    model = MODELS[kind](n_envs)
    model.learn(192, callback=callback)
    rollout = n_envs * (16 if kind == "ppo" else 4)
    reached = range(0, model.num_timesteps + rollout, rollout)
    expected = [next(r for r in reached if r >= at) for at in range(40, model.num_timesteps + 1, 40)]
    assert callback.evaluations_timesteps == sorted(set(expected))


@pytest.mark.parametrize("n_envs", [1, 3, 4])
@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_checkpoints_come_every_so_many_environment_steps(tmp_path: Path, kind: str, n_envs: int) -> None:
    """The next rollout start at or after each multiple of `save_freq`, and the end of training."""
    callback = callbacks.CheckpointCallback(40, str(tmp_path))
    steps: list[int] = []
    callback.on_commit = lambda checkpoint: steps.append(checkpoint.global_step)
    model = MODELS[kind](n_envs)
    model.learn(192, callback=callback)
    rollout = n_envs * (16 if kind == "ppo" else 4)
    starts = range(0, model.num_timesteps, rollout)
    due = [next((s for s in starts if s >= at), None) for at in range(40, model.num_timesteps, 40)]
    expected = [*sorted({s for s in due if s is not None}), model.num_timesteps]
    assert steps == expected
    found = checkpoints.list_checkpoints(Store(tmp_path / "checkpoints"))
    assert [c.global_step for c in found] == expected


@pytest.mark.parametrize("n_envs", [1, 3])
def test_films_come_every_so_many_environment_steps(tiny_config: TinyConfig, n_envs: int) -> None:
    """A film is made at the next rollout start at or after each multiple of `render_freq`."""
    films: list[tuple[str, tuple[int, ...], int, int]] = []
    callback = callbacks.VideoRecorderCallback(
        envs.film_env(tiny_config("env.id=SeedEcho-v0"), 902),
        40,
        log_video=lambda name, frames, fps, step: films.append((name, frames.shape, fps, step)),
    )
    model = _ppo(n_envs, "SeedEcho-v0")
    model.learn(192, callback=callback)
    starts = range(0, model.num_timesteps, 16 * n_envs)
    expected = {next((s for s in starts if s >= at), None) for at in range(40, 193, 40)} - {None}
    assert [step for *_, step in films] == sorted(expected)  # type: ignore[type-var]
    assert all(film[0] == "eval/video" and film[2] == 5 for film in films)
    assert films[0][1] == (1 + 902 % 3, 8, 8, 3)


def test_frequency_zero_is_never(evaluated: Callable[..., VecEnv], tmp_path: Path) -> None:
    """0 switches evaluations and films off; checkpoints are then committed at the end only."""
    evaluation = callbacks.EvalCallback(evaluated(), eval_freq=0)
    commits = callbacks.CheckpointCallback(0, tmp_path)
    _ppo().learn(64, callback=[evaluation, commits])
    assert evaluation.evaluations_timesteps == []
    found = checkpoints.list_checkpoints(Store(tmp_path / "checkpoints"))
    assert [c.global_step for c in found] == [64]


def test_counting_goes_on_in_a_second_learn(evaluated: Callable[..., VecEnv]) -> None:
    """Learning on with the same callback keeps the multiples of the frequency."""
    callback = callbacks.EvalCallback(evaluated(), n_eval_episodes=1, eval_freq=40)
    model = _ppo()
    for _ in range(2):
        model.learn(64, callback=callback, reset_num_timesteps=False)
    assert callback.evaluations_timesteps == [40, 80, 120]


def test_a_frequency_smaller_than_n_envs_is_every_step(evaluated: Callable[..., VecEnv]) -> None:
    """More than one multiple in one vectorised step is one evaluation, never two."""
    callback = callbacks.EvalCallback(evaluated(), n_eval_episodes=1, eval_freq=2)
    _ppo(4, n_steps=4).learn(16, callback=callback)
    assert callback.evaluations_timesteps == [4, 8, 12, 16]


# ---------------------------------------------------------------- training is not touched


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("where", ["in rollouts", "between rollouts"])
@pytest.mark.parametrize("kind", ["ppo", "dqn", "sac"])
def test_watching_does_not_change_what_is_learned(
    evaluated: Callable[..., VecEnv],
    tiny_config: TinyConfig,
    tmp_path: Path,
    kind: str,
    where: str,
    deterministic: bool,
) -> None:
    """Parameters have the same bits with and without evaluations, checkpoints and films."""
    pendulum = ("algorithm=sac", "env=pendulum", "env.max_episode_steps=10")
    overrides = pendulum if kind == "sac" else ("env=cartpole",)
    film_env = envs.film_env(tiny_config(*overrides), 900)
    films: list[int] = []
    watchers = [
        callbacks.EvalCallback(
            evaluated(*overrides, copies=2),
            n_eval_episodes=3,
            eval_freq=24,
            deterministic=deterministic,
            best_model_save_path=str(tmp_path / "best"),
            at_rollout_start=where == "between rollouts",
        ),
        callbacks.VideoRecorderCallback(
            film_env, 24, deterministic=deterministic, max_steps=5, log_video=lambda *a: films.append(a[3])
        ),
        callbacks.CheckpointCallback(32, tmp_path),
    ]
    bare, watched = MODELS[kind](2).learn(64), MODELS[kind](2).learn(64, callback=watchers)
    assert len(watchers[0].evaluations_timesteps) == 2
    assert films
    assert models.parameters_sha256(watched) == models.parameters_sha256(bare)
    film_env.close()


def test_the_normaliser_of_training_is_not_touched(evaluated: Callable[..., VecEnv]) -> None:
    """An evaluation uses training's statistics, adds nothing to them, and reports unscaled rewards."""
    env = evaluated("env.normalize=true")
    callback = callbacks.EvalCallback(env, n_eval_episodes=2, eval_freq=24)
    bare = _normalized_ppo().learn(96)
    watched = _normalized_ppo().learn(96, callback=callback)
    ours, theirs = watched.get_vec_normalize_env(), bare.get_vec_normalize_env()
    assert ours is not None
    assert theirs is not None
    assert np.array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)
    assert np.array_equal(ours.returns, theirs.returns)
    assert isinstance(env, VecNormalize)
    for rewards, lengths in zip(callback.evaluations_results, callback.evaluations_length, strict=True):
        assert rewards == lengths, "a step of CartPole is worth 1"


def test_an_env_that_is_not_normalised_like_training_s_is_refused(evaluated: Callable[..., VecEnv]) -> None:
    """A policy trained on normalised observations is not scored on raw ones in silence."""
    callback = callbacks.EvalCallback(evaluated(), n_eval_episodes=1, eval_freq=16)
    with (
        pytest.warns(UserWarning, match="not of the same type"),
        pytest.raises(Exception, match=r"(?i)wrapped|normali"),  # SB3 asserts it
    ):
        _normalized_ppo().learn(32, callback=callback)


@pytest.mark.filterwarnings("error")
def test_a_bare_environment_of_the_user_works(tmp_path: Path) -> None:
    """As in SB3, `eval_env` may be a gymnasium environment without a Monitor, if `warn` is off."""
    callback = callbacks.EvalCallback(
        gym.make("CartPole-v1"), n_eval_episodes=2, eval_freq=16, log_path=str(tmp_path), warn=False
    )
    _ppo().learn(32, callback=callback)
    assert callback.evaluations_timesteps == [16, 32]
    assert (
        callback.last_mean_reward == callback.evaluations_results[-1][0] / 2 + callback.evaluations_results[-1][1] / 2
    )


# ---------------------------------------------------------------- rows


@pytest.fixture
def quiet_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExperimentLogger]:
    """A logger that logs nowhere."""
    monkeypatch.chdir(tmp_path)
    with ExperimentLogger({"wandb": {"mode": "disabled"}}) as logger:
        yield logger


class Kept(ExperimentLogger):
    """A logger that also keeps its rows, as it would log them."""

    rows: Rows

    def _emit(self, row: Any) -> None:
        if row is not None:
            self.rows.append((row[0], dict(row[1])))
        super()._emit(row)


@pytest.fixture(params=["disabled", "offline"])
def logger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """A logger in each mode that needs no server; its rows are kept to look at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Kept, "rows", [], raising=False)
    with Kept({"wandb": {"mode": request.param, "dir": str(tmp_path)}}) as opened:
        yield opened


def test_one_row_per_step_lines_rollout_train_and_eval_up(evaluated: Callable[..., VecEnv], logger: Kept) -> None:
    """Each step has one row; an evaluation at a rollout's end shares it with rollout/* and train/*."""
    evaluation = callbacks.EvalCallback(evaluated(), n_eval_episodes=2, eval_freq=32)
    _ppo(2).learn(128, callback=[*logger.get_callbacks(), evaluation])
    steps = [step for step, _ in logger.rows]
    assert steps == [32, 64, 96, 128]
    for _, row in logger.rows:
        assert {"rollout/ep_rew_mean", "train/loss", "eval/mean_reward", "eval/std_reward"} <= set(row)


def test_an_evaluation_within_a_rollout_has_a_row_of_its_own(evaluated: Callable[..., VecEnv], logger: Kept) -> None:
    """Between two updates an evaluation's row holds eval/* only, at its own step."""
    evaluation = callbacks.EvalCallback(evaluated(), n_eval_episodes=2, eval_freq=40)
    _ppo().learn(48, callback=[*logger.get_callbacks(), evaluation])
    rows = dict(logger.rows)
    assert list(rows) == [16, 32, 40, 48]
    assert {name.split("/")[0] for name in rows[40]} == {"eval"}


def test_train_values_stand_at_their_update_s_step(logger: Kept) -> None:
    """Each update's train/* are in the row of its own step, the last update's too."""

    class Losses(callbacks.BaseCallback):
        """Looks at SB3's pending values whenever an update is done."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: dict[int, float] = {}

        def _look(self) -> None:
            if "train/loss" in self.model.logger.name_to_value:
                self.seen[self.model.num_timesteps] = self.model.logger.name_to_value["train/loss"]

        def _on_rollout_start(self) -> None:
            self._look()

        def _on_training_end(self) -> None:
            self._look()

    losses = Losses()
    _ppo().learn(64, callback=[losses, *logger.get_callbacks()])
    assert list(losses.seen) == [16, 32, 48, 64]
    assert {step: row["train/loss"] for step, row in logger.rows} == losses.seen


@pytest.mark.parametrize(("kind", "total", "interval"), [("ppo", 80, 2), ("dqn", 100, 1000), ("sac", 60, 4)])
def test_the_last_train_values_are_never_lost(
    quiet_logger: ExperimentLogger, kind: str, total: int, interval: int
) -> None:
    """Also where SB3 dumps rarely or never, the last update's train/* are logged at the last step."""
    callback = callbacks.WandbCallback(logger=quiet_logger)
    rows: Rows = []
    callback.writer.sinks = (lambda row, step: rows.append((step, dict(row))),)
    model = MODELS[kind]()
    model.learn(total, callback=callback, log_interval=interval)
    assert rows, "nothing was logged"
    step, row = rows[-1]
    assert step == model.num_timesteps
    name = "train/loss" if kind != "sac" else "train/critic_loss"
    assert row[name] == model.logger.name_to_value.get(name, row[name])


def test_learning_on_repeats_no_row(logger: Kept) -> None:
    """A second `learn` with the same callback logs the new steps only, each once."""
    model, wandb_callbacks = _ppo(), logger.get_callbacks()
    for _ in range(2):
        model.learn(32, callback=wandb_callbacks, reset_num_timesteps=False)
    assert [step for step, _ in logger.rows] == [16, 32, 48, 64]
    assert not any(isinstance(o, RowWriter) for o in model.logger.output_formats)


def test_an_evaluation_adds_its_spread(evaluated: Callable[..., VecEnv]) -> None:
    """eval/* are SB3's names with SB3's values, and the standard deviation."""
    spy = Spy()
    evaluation = callbacks.EvalCallback(evaluated(), n_eval_episodes=3, eval_freq=16)
    _ppo().learn(16, callback=[spy, evaluation])
    row = spy.rows[-1][1]
    returns, lengths = evaluation.evaluations_results[-1], evaluation.evaluations_length[-1]
    assert row["eval/mean_reward"] == np.mean(returns) == evaluation.last_mean_reward
    assert row["eval/std_reward"] == np.std(returns)
    assert row["eval/mean_ep_length"] == np.mean(lengths)
    assert "eval/success_rate" not in row


def test_success_is_reported_where_the_environment_tells(evaluated: Callable[..., VecEnv], tmp_path: Path) -> None:
    """``is_success`` becomes eval/success_rate, and the successes of evaluations.npz."""
    spy = Spy()
    evaluation = callbacks.EvalCallback(
        evaluated("env.id=SeedEcho-v0"), n_eval_episodes=3, eval_freq=16, log_path=str(tmp_path)
    )
    _ppo(env="SeedEcho-v0").learn(32, callback=[spy, evaluation])
    assert [row["eval/success_rate"] for _, row in spy.rows] == [1.0, 1.0]
    with np.load(tmp_path / "evaluations.npz") as arrays:
        assert arrays["successes"].tolist() == [[True] * 3] * 2


def test_wandb_callback_saves_the_model_where_told(quiet_logger: ExperimentLogger, tmp_path: Path) -> None:
    """`model_save_path` gets model.zip every `model_save_freq` environment steps and at the end."""
    target = tmp_path / "models here"
    callback = callbacks.WandbCallback(model_save_path=str(target), model_save_freq=32, logger=quiet_logger)
    _ppo(2).learn(64, callback=callback)
    assert PPO.load(target / "model.zip", device="cpu").num_timesteps == 64
    saved = sorted(p.name for p in (quiet_logger.dir / "models").iterdir())
    assert "model-32" in saved
    assert "model-64" in saved


def test_wandb_callback_saves_no_model_unasked(quiet_logger: ExperimentLogger) -> None:
    """By default, as in W&B's, no model is saved."""
    _ppo().learn(32, callback=quiet_logger.get_callbacks())
    assert not (quiet_logger.dir / "models").exists()


# ---------------------------------------------------------------- what an evaluation keeps


def test_evaluations_npz_is_sb3_s(evaluated: Callable[..., VecEnv], tmp_path: Path) -> None:
    """The same arrays, types and shapes as SB3 writes, and the same numbers, without a pickle."""
    ours = callbacks.EvalCallback(evaluated(), n_eval_episodes=3, eval_freq=16, log_path=str(tmp_path / "ours"))
    theirs = sb3.EvalCallback(
        evaluated(), n_eval_episodes=3, eval_freq=16, log_path=str(tmp_path / "theirs"), verbose=0
    )
    _ppo().learn(64, callback=ours)
    _ppo().learn(64, callback=theirs)
    with (
        np.load(tmp_path / "ours" / "evaluations.npz", allow_pickle=False) as a,
        np.load(tmp_path / "theirs" / "evaluations.npz", allow_pickle=False) as b,
    ):
        assert set(a) == set(b)
        for name in a:
            assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert np.array_equal(a["timesteps"], b["timesteps"])
        assert np.array_equal(a["results"][0], b["results"][0]), "the first evaluation is on the same seeds"


def test_the_best_model_comes_with_its_statistics(evaluated: Callable[..., VecEnv], tmp_path: Path) -> None:
    """best_model.zip and vecnormalize.pkl are of the same step and open with SB3's own `load`."""
    seen: dict[int, tuple[str, np.ndarray]] = {}
    model = _normalized_ppo()
    scores: dict[int, float] = {}

    def remember(score: Scores, step: int) -> None:
        normalizer = model.get_vec_normalize_env()
        assert normalizer is not None
        seen[step] = (models.parameters_sha256(model), normalizer.obs_rms.mean.copy())
        scores[step] = score.mean

    evaluation = callbacks.EvalCallback(
        evaluated("env.normalize=true"),
        n_eval_episodes=3,
        eval_freq=32,
        best_model_save_path=str(tmp_path / "best"),
        on_scores=remember,
    )
    model.learn(256, callback=evaluation)
    best = max(scores, key=lambda step: (scores[step], -step))
    assert len({mean.tobytes() for _, mean in seen.values()}) == len(seen) == 8
    loaded = PPO.load(tmp_path / "best" / "best_model.zip", device="cpu")
    assert loaded.num_timesteps == best
    assert models.parameters_sha256(loaded) == seen[best][0]
    normalizer = VecNormalize.load(str(tmp_path / "best" / "vecnormalize.pkl"), make_vec_env("CartPole-v1"))
    assert np.array_equal(normalizer.obs_rms.mean, seen[best][1])
    assert evaluation.best_mean_reward == scores[best]


def test_without_normaliser_only_the_model_is_kept(evaluated: Callable[..., VecEnv], tmp_path: Path) -> None:
    """Where nothing is normalised, best_model.zip stands alone."""
    evaluation = callbacks.EvalCallback(
        evaluated(), n_eval_episodes=1, eval_freq=16, best_model_save_path=str(tmp_path / "best")
    )
    _ppo().learn(32, callback=evaluation)
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["best_model.zip"]


@pytest.mark.parametrize("between_rollouts", [False, True])
def test_an_abandoned_evaluation_leaves_no_record_and_stays_due(
    evaluated: Callable[..., VecEnv], tmp_path: Path, between_rollouts: bool
) -> None:
    """When `stop` says so nothing is recorded, and the evaluation is made at the next occasion."""
    stopped = True
    asked: list[int] = []
    spy = Spy()

    def stop() -> bool:
        asked.append(model.num_timesteps)
        return stopped

    evaluation = callbacks.EvalCallback(
        evaluated(),
        n_eval_episodes=2,
        eval_freq=20,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path / "best"),
        at_rollout_start=between_rollouts,
        stop=stop,
    )
    model = _ppo()
    model.learn(32, callback=[spy, evaluation])
    assert asked
    assert asked[0] == (32 if between_rollouts else 20)
    assert evaluation.evaluations_timesteps == []
    assert evaluation.best_mean_reward == -np.inf
    assert not (tmp_path / "evaluations.npz").exists()
    assert not (tmp_path / "best").exists()
    assert not any(name.startswith("eval/") for _, row in spy.rows for name in row)
    stopped = False
    model.learn(16, callback=evaluation, reset_num_timesteps=False)
    assert evaluation.evaluations_timesteps[0] == (32 if between_rollouts else 33)


def test_an_abandoned_film_stays_due(tiny_config: TinyConfig) -> None:
    """A film that `stop` ends is not logged and is made at the next occasion."""
    films: list[int] = []
    stopped = True
    callback = callbacks.VideoRecorderCallback(
        envs.film_env(tiny_config("env.id=SeedEcho-v0"), 902),
        16,
        log_video=lambda *arguments: films.append(arguments[3]),
        stop=lambda: stopped,
    )
    model = _ppo(env="SeedEcho-v0")
    model.learn(32, callback=callback)
    assert films == []
    stopped = False
    model.learn(16, callback=callback, reset_num_timesteps=False)
    assert films == [32]


def test_a_film_may_show_several_episodes() -> None:
    """`n_eval_episodes` episodes are joined in one film; a plain gymnasium environment will do."""
    films: list[np.ndarray] = []
    callback = callbacks.VideoRecorderCallback(
        gym.make("CartPole-v1", render_mode="rgb_array"),
        16,
        2,
        max_steps=3,
        log_video=lambda name, frames, fps, step: films.append(frames),
    )
    _ppo().learn(32, callback=callback)
    assert films[0].shape[0] == 8
    assert films[0].shape[3] == 3
    callback.eval_env.close()


def test_a_resumed_evaluation_goes_on(evaluated: Callable[..., VecEnv]) -> None:
    """History, best score and the count of steps carry over from `state` to `restore`."""
    first = callbacks.EvalCallback(evaluated(), n_eval_episodes=2, eval_freq=24)
    model = _ppo()
    model.learn(32, callback=first)
    second = callbacks.EvalCallback(evaluated(), n_eval_episodes=2, eval_freq=24)
    second.restore(first.state())
    model.learn(32, callback=second, reset_num_timesteps=False)
    assert second.evaluations_timesteps == [24, 48]
    assert second.evaluations_results[0] == first.evaluations_results[0]
    assert second.best_mean_reward == max(np.mean(r) for r in second.evaluations_results)


# ---------------------------------------------------------------- children of an evaluation


@pytest.mark.parametrize("between_rollouts", [False, True])
def test_a_reached_threshold_stops_training(evaluated: Callable[..., VecEnv], between_rollouts: bool) -> None:
    """SB3's StopTrainingOnRewardThreshold ends training at the first good enough evaluation."""
    evaluation = callbacks.EvalCallback(
        evaluated(),
        sb3.StopTrainingOnRewardThreshold(1.0),
        n_eval_episodes=1,
        eval_freq=16,
        at_rollout_start=between_rollouts,
    )
    model = _ppo()
    model.learn(160, callback=evaluation)
    assert evaluation.evaluations_timesteps[0] == 16
    assert model.num_timesteps <= 32


@pytest.mark.parametrize("between_rollouts", [False, True])
def test_a_threshold_out_of_reach_does_not(evaluated: Callable[..., VecEnv], between_rollouts: bool) -> None:
    """Below the threshold training goes on to its end."""
    evaluation = callbacks.EvalCallback(
        evaluated(),
        callback_on_new_best=sb3.StopTrainingOnRewardThreshold(1e9),
        n_eval_episodes=1,
        eval_freq=16,
        at_rollout_start=between_rollouts,
    )
    model = _ppo()
    model.learn(96, callback=evaluation)
    assert model.num_timesteps == 96


@pytest.mark.parametrize("between_rollouts", [False, True])
def test_no_improvement_stops_training(evaluated: Callable[..., VecEnv], between_rollouts: bool) -> None:
    """SB3's StopTrainingOnNoModelImprovement ends training after so many evaluations without a new best."""
    patience = sb3.StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=1)
    evaluation = callbacks.EvalCallback(
        evaluated("env.id=SeedEcho-v0"),
        callback_after_eval=patience,
        n_eval_episodes=1,
        eval_freq=16,
        at_rollout_start=between_rollouts,
    )
    model = _ppo(env="SeedEcho-v0")
    model.learn(320, callback=evaluation)
    assert evaluation.evaluations_results == [[5_000.0]] * len(evaluation.evaluations_results)
    assert len(evaluation.evaluations_timesteps) == 4
    assert model.num_timesteps <= 80


class Count(sb3.BaseCallback):
    """Counts its calls and knows its parent's last score."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[float] = []

    def _on_step(self) -> bool:
        self.scores.append(self.parent.last_mean_reward)  # type: ignore[union-attr]
        return True


@pytest.mark.parametrize("between_rollouts", [False, True])
def test_children_are_called_when_sb3_would_call_them(evaluated: Callable[..., VecEnv], between_rollouts: bool) -> None:
    """One child is called after each new best, the other after each evaluation, with the score known."""
    on_best, after = Count(), Count()
    evaluation = callbacks.EvalCallback(
        evaluated(),
        callback_on_new_best=on_best,
        callback_after_eval=after,
        n_eval_episodes=2,
        eval_freq=16,
        at_rollout_start=between_rollouts,
    )
    _ppo().learn(96, callback=evaluation)
    means = [float(np.mean(r)) for r in evaluation.evaluations_results]
    assert after.scores == means
    assert len(means) == 6
    assert on_best.scores == [m for i, m in enumerate(means) if all(m > other for other in means[:i])]


# ---------------------------------------------------------------- what a checkpoint holds


def test_a_checkpoint_holds_sb3_s_files_and_the_facts(tmp_path: Path) -> None:
    """SB3's zip opens with SB3, the manifest says what it was told, and a normaliser comes along."""
    callback = callbacks.CheckpointCallback(
        32, tmp_path, "mine", facts=lambda: {"flavour": "sweet"}, extra_state=lambda: {"x": 1}
    )
    model = _normalized_ppo()
    model.learn(64, callback=callback)
    found = checkpoints.find(tmp_path)
    assert callback.newest is not None
    assert callback.newest.address == found.address
    assert (found.manifest.name, found.manifest.facts()["flavour"]) == ("mine", "sweet")
    assert {"model.zip", "vecnormalize.pkl", "vecnormalize.npz", "state.pkl"} <= set(found.files)
    loaded = PPO.load(Path(found.address) / "model.zip", device="cpu")
    assert models.parameters_sha256(loaded) == models.parameters_sha256(model)


@pytest.mark.parametrize("keep", [True, False])
def test_sb3_s_pickle_can_be_left_out(tmp_path: Path, keep: bool) -> None:
    """`save_vecnormalize` decides about vecnormalize.pkl; what a resume needs is there either way."""
    callback = callbacks.CheckpointCallback(0, tmp_path, save_vecnormalize=keep)
    _normalized_ppo().learn(16, callback=callback)
    files = checkpoints.find(tmp_path).files
    assert ("vecnormalize.pkl" in files) is keep
    assert "vecnormalize.npz" in files


def test_an_environment_that_cannot_be_captured_is_said(tmp_path: Path) -> None:
    """Where the environment's state stays behind, the manifest says boundary and why."""
    _ppo().learn(16, callback=callbacks.CheckpointCallback(0, tmp_path))
    manifest = checkpoints.find(tmp_path).manifest
    assert manifest.resume_mode == "boundary", "make_vec_env knows no capture_state"
    assert manifest.resume_reason


def test_an_environment_of_ours_is_captured(tiny_config: TinyConfig, tmp_path: Path) -> None:
    """In the environments of a `Config` the manifest says exact, and no reason."""
    config = tiny_config("env.n_envs=2")
    model = models.build(config, envs.training_env(config))
    model.learn(16, callback=callbacks.CheckpointCallback(0, tmp_path))
    manifest = checkpoints.find(tmp_path).manifest
    assert manifest.resume_mode == "exact"
    assert "resume_reason" not in manifest.facts()


def test_a_commit_out_of_turn(tmp_path: Path) -> None:
    """`save_now` is asked at every rollout start and commits at once."""
    steps: list[int] = []
    model = _ppo()
    callback = callbacks.CheckpointCallback(
        1_000,
        tmp_path,
        save_now=lambda: model.num_timesteps == 32,
        on_commit=lambda checkpoint: steps.append(checkpoint.global_step),
    )
    model.learn(64, callback=callback)
    assert steps == [32, 64]


def test_a_best_model_zip_is_never_half_written(evaluated: Callable[..., VecEnv], tmp_path: Path) -> None:
    """Whenever training looks, best_model.zip is a whole zip of some evaluated step."""
    best = tmp_path / "best" / "best_model.zip"
    checked: list[int] = []

    class Look(callbacks.BaseCallback):
        """Opens the file at every step."""

        def _on_step(self) -> bool:
            if best.exists():
                with zipfile.ZipFile(best) as archive:
                    assert archive.testzip() is None
                checked.append(self.num_timesteps)
            return True

    evaluation = callbacks.EvalCallback(
        evaluated(), n_eval_episodes=1, eval_freq=8, best_model_save_path=str(tmp_path / "best")
    )
    _ppo().learn(64, callback=[evaluation, Look()])
    assert len(checked) == 57
    assert [p.name for p in best.parent.iterdir()] == ["best_model.zip"]


def test_rows_written_to_a_user_s_own_logger(evaluated: Callable[..., VecEnv]) -> None:
    """Evaluations reach whatever formats the user's own SB3 logger has."""
    rows: Rows = []
    model = _ppo()
    model.set_logger(Logger(None, [RowWriter(lambda row, step: rows.append((step, dict(row))))]))
    evaluation = callbacks.EvalCallback(evaluated(), n_eval_episodes=1, eval_freq=16)
    model.learn(48, callback=evaluation)
    assert [step for step, row in rows if "eval/mean_reward" in row][:2] == [16, 32]
