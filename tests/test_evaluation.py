"""Scores depend on the policy and the seeds alone, and a stranger's checkpoint runs no code."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Config
from rl_research.errors import CheckpointDamaged, CheckpointError, ConfigError, Interrupted
from rl_research.tracking import saved_policy
from rl_research.training import envs, evaluation, models, snapshot

TinyConfig = Callable[..., Config]
CASES = {
    "ppo": ("algorithm=ppo", "env=cartpole", "env.normalize=true", "env.n_envs=2"),
    "dqn": ("algorithm=dqn", "env=cartpole", "algorithm.params.exploration_final_eps=1.0"),
    "sac": ("algorithm=sac", "env=pendulum", "env.max_episode_steps=30"),
}


def _trained(config: Config, steps: int = 64) -> BaseAlgorithm:
    model = models.build(config, envs.training_env(config))
    return model.learn(steps)


def _commit(model: BaseAlgorithm, config: Config, folder: Path, **changes: bytes) -> Checkpoint:
    """A checkpoint of *model*, its manifest vouching for *changes* too (a name's dot is ``__``)."""
    files, _ = snapshot.capture(model, {})
    files |= {name.replace("__", "."): data for name, data in changes.items()}
    facts = {"config": config.model_dump(mode="json")}
    return checkpoints.commit(folder, model.num_timesteps, files, facts)


def _randomness(model: BaseAlgorithm) -> list[Any]:
    """Every generator that training draws from."""
    assert model.env is not None
    return [
        random.getstate(),
        pickle.dumps(np.random.get_state()),
        torch.get_rng_state().tolist(),
        model.action_space.np_random.bit_generator.state,
        model.observation_space.np_random.bit_generator.state,
        *(env.unwrapped.np_random.bit_generator.state for env in model.env.unwrapped.envs),  # type: ignore[attr-defined]
    ]


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_leaves_training_as_it_was(tiny_config: TinyConfig, case: str, deterministic: bool) -> None:
    """No generator, no statistic and no parameter of training is touched."""
    config = tiny_config(*CASES[case], f"evaluation.deterministic={deterministic}")
    model = _trained(config)
    before, hash_before = _randomness(model), models.parameters_sha256(model)
    normalizer = model.get_vec_normalize_env()
    statistics = normalizer and saved_policy.normalizer_statistics(normalizer)
    evaluation.evaluate_model(model, config, episodes=4, first_seed=5_000)
    assert _randomness(model) == before
    assert models.parameters_sha256(model) == hash_before
    assert (normalizer and saved_policy.normalizer_statistics(normalizer)) == statistics


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_scores_depend_on_nothing_but_policy_and_seeds(tiny_config: TinyConfig, case: str, deterministic: bool) -> None:
    """Evaluated again under other random states, a policy has the very same scores, also if stochastic."""
    config = tiny_config(*CASES[case], f"evaluation.deterministic={deterministic}")
    model = _trained(config)
    first = evaluation.evaluate_model(model, config, episodes=4, first_seed=5_000)
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        model.action_space.seed(seed)
        assert evaluation.evaluate_model(model, config, episodes=4, first_seed=5_000) == first
    other = evaluation.evaluate_model(model, config, episodes=4, first_seed=7_000)
    assert other.returns != first.returns


def test_more_episodes_contain_the_fewer(tiny_config: TinyConfig) -> None:
    """Episode k is the same whether 3 or 12 episodes are played, in however many copies."""
    config = tiny_config("env.id=SeedEcho-v0")
    model = _trained(config)
    for episodes in (3, 8, 9, 12):
        scores = evaluation.evaluate_model(model, config, episodes=episodes, first_seed=5_000)
        assert sorted(scores.returns) == list(range(5_000, 5_000 + episodes))


def test_scores_say_what_sb3_says(tiny_config: TinyConfig) -> None:
    """Mean and standard deviation are SB3's own over the same episodes; the record is plain JSON."""
    from stable_baselines3.common.evaluation import evaluate_policy

    config = tiny_config()
    model = _trained(config)
    scores = evaluation.evaluate_model(model, config, episodes=4, first_seed=5_000)
    mean, std = evaluate_policy(model, envs.evaluation_env(config, 5_000, 4), n_eval_episodes=4)
    assert (scores.mean, scores.std) == (mean, std)
    assert scores.summary() == {"mean": mean, "std": std, "episodes": 4}
    record = json.loads(json.dumps(scores.model_dump()))
    assert record["returns"] == list(scores.returns)
    assert (record["first_seed"], record["deterministic"]) == (5_000, True)
    assert sum(record["lengths"]) == sum(scores.returns), "a step of CartPole is worth 1"


def test_an_evaluation_can_be_stopped(tiny_config: TinyConfig) -> None:
    """`on_step` is asked after every step; what it raises gets out, and the generators are given back."""
    config = tiny_config()
    model = _trained(config)
    before, steps = _randomness(model), 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        evaluation.evaluate_model(model, config, episodes=2, first_seed=1, on_step=stop)
    assert steps == 5
    assert _randomness(model) == before


# ---------------------------------------------------------------- from checkpoints


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_scores_like_the_model_it_was(tiny_config: TinyConfig, tmp_path: Path, case: str) -> None:
    """Evaluated from its checkpoint, a policy has the scores, and the hash, of the trained model."""
    config = tiny_config(*CASES[case])
    model = _trained(config, 200)
    checkpoint = checkpoints.find(_commit(model, config, tmp_path).address)
    expected = evaluation.evaluate_model(model, config, episodes=4, first_seed=config.evaluation.seed)
    before = random.getstate()
    assert evaluation.evaluate_checkpoint(checkpoint) == expected
    assert len(evaluation.evaluate_checkpoint(checkpoint, episodes=2).returns) == 2
    assert random.getstate() == before
    with evaluation.loaded_policy(checkpoint, evaluation.config_of(checkpoint)) as loaded:
        assert models.parameters_sha256(loaded) == models.parameters_sha256(model)


def test_the_statistics_of_the_normaliser_count(tiny_config: TinyConfig, tmp_path: Path) -> None:
    """The normaliser's numbers come from the checkpoint: with others the policy sees something else."""
    config = tiny_config(*CASES["ppo"])
    model = _trained(config, 200)
    checkpoint = _commit(model, config, tmp_path)
    with evaluation.loaded_policy(checkpoint, config) as loaded:
        ours, theirs = loaded.get_vec_normalize_env(), model.get_vec_normalize_env()
    assert ours is not None
    assert theirs is not None
    assert np.array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)
    assert np.array_equal(ours.obs_rms.var, theirs.obs_rms.var)
    assert ours.obs_rms.count == theirs.obs_rms.count
    assert not np.array_equal(theirs.obs_rms.mean, np.zeros(4))


class Bomb:
    """Pickled, it creates a file wherever it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def _evil_zip(model_zip: bytes, marker: Path) -> bytes:
    """SB3's zip with a pickle in its ``data`` that creates *marker*."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model_zip)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "data":
                values = json.loads(data)
                evil = base64.b64encode(pickle.dumps(Bomb(marker))).decode()
                for value in values.values():
                    if isinstance(value, dict) and ":serialized:" in value:
                        value[":serialized:"] = evil
                data = json.dumps(values).encode()
            new.writestr(name, data)
    return out.getvalue()


def test_a_malicious_checkpoint_is_scored_and_runs_nothing(tiny_config: TinyConfig, tmp_path: Path) -> None:
    """Pickles in model.zip, vecnormalize.pkl and state.pkl that the manifest vouches for stay unopened."""
    config = tiny_config(*CASES["ppo"])
    model = _trained(config)
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    evil = _evil_zip(saved_policy.policy_files(model)[saved_policy.MODEL], marker)
    checkpoint = _commit(model, config, tmp_path, model__zip=evil, vecnormalize__pkl=bomb, state__pkl=bomb)
    scores = evaluation.evaluate_checkpoint(checkpoints.find(tmp_path))
    assert not marker.exists()
    assert scores == evaluation.evaluate_model(model, config, episodes=4, first_seed=config.evaluation.seed)
    with suppress(Exception):  # whatever becomes of it, the code has run
        type(model).load(io.BytesIO(checkpoint.read("model.zip")))
    assert marker.exists(), "this zip was not dangerous, so the test shows nothing"
    marker.unlink()
    pickle.loads(checkpoint.read("state.pkl"))
    assert marker.exists()


def _npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **{name.replace("__", "/"): array for name, array in arrays.items()})
    return out.getvalue()


def _npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


_GOOD = {"ret__mean": 0.0, "ret__var": 1.0, "ret__count": 1.0}
_OBS = {"obs___mean": np.zeros(4), "obs___var": np.ones(4), "obs___count": 1.0}


@pytest.mark.parametrize(
    "statistics",
    [
        b"",
        b"garbage",
        b"PK\x03\x04 and then garbage",
        _npy(np.zeros(4)),
        _npz(),
        _npz(**_GOOD),
        _npz(**_GOOD, **{**_OBS, "obs___mean": np.zeros(3)}),
        _npz(**_GOOD, **{**_OBS, "obs___var": np.ones((2, 4))}),
        _npz(**_GOOD, **{**_OBS, "obs___count": np.ones(2)}),
        _npz(**_GOOD, **{**_OBS, "obs___mean": np.array(["a", "b", "c", "d"])}),
        _npz(**_GOOD, **{**_OBS, "obs___var": np.full(4, np.nan)}),
    ],
    ids=["empty", "garbage", "no zip", "one array", "nothing", "no obs", "shape", "rank", "counts",
         "text", "nan"],
)  # fmt: skip
def test_statistics_that_do_not_fit_are_damage(tiny_config: TinyConfig, tmp_path: Path, statistics: bytes) -> None:
    """A normaliser's file with other names, shapes or types is refused in one line, before it is used."""
    config = tiny_config(*CASES["ppo"])
    checkpoint = _commit(_trained(config), config, tmp_path, vecnormalize__npz=statistics)
    with pytest.raises(CheckpointDamaged) as caught:
        evaluation.evaluate_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


def test_pickled_statistics_are_damage_and_not_run(tiny_config: TinyConfig, tmp_path: Path) -> None:
    """An array of objects, NumPy's way to hold a pickle, is refused unopened."""
    config = tiny_config(*CASES["ppo"])
    marker = tmp_path / "marker"
    evil = _npz(**_GOOD, **{**_OBS, "obs___mean": np.array([Bomb(marker)], dtype=object)})
    for statistics in (evil, pickle.dumps(Bomb(marker))):
        checkpoint = _commit(_trained(config), config, tmp_path, vecnormalize__npz=statistics)
        with pytest.raises(CheckpointDamaged):
            evaluation.evaluate_checkpoint(checkpoint)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": None}, "configuration is unreadable"),
        ({"config": {}}, "configuration is unreadable"),
        ({"config": "text"}, "configuration is unreadable"),
        ({"algorithm": {"name": "ppoo"}}, "ppoo"),
        ({"algorithm": {"name": "os.system"}}, "os.system"),
        ({"algorithm": {"name": "ppo", "policy": "NoSuchPolicy"}}, "NoSuchPolicy"),
        ({"algorithm": {"name": "ppo", "params": {"nonsense": 1}}}, "nonsense"),
        ({"algorithm": {"name": "ppo", "params": {"_init_setup_model": False}}}, ""),
        ({"algorithm": {"name": "ppo", "params": {"policy_kwargs": {"optimizer_class": "load"}}}}, "optimizer_class"),
        ({"algorithm": {"name": "ppo", "params": {"policy_kwargs": {"activation_fn": "nope"}}}}, "activation_fn"),
        ({"env": {"id": "NoSuchEnv-v0"}}, "NoSuchEnv-v0"),
        ({"env": {"id": "CartPole-v1", "kwargs": {"nonsense": 1}}}, "nonsense"),
        ({"env": {"id": "CartPole-v1", "normalize": {"nonsense": 1}}}, "nonsense"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_stranger_s_configuration_is_checked_like_our_own(
    tiny_config: TinyConfig, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """A manifest whose configuration could not have been written by us is one line, never a traceback."""
    config = tiny_config(*CASES["ppo"])
    facts = {"config": {**config.model_dump(mode="json"), **change}}
    if "config" in change:
        facts = change
    files, _ = snapshot.capture(_trained(config), {})
    checkpoint = checkpoints.commit(tmp_path, 64, files, facts)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        evaluation.evaluate_checkpoint(checkpoint)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stranger_s_rollout_size_takes_no_memory(tiny_config: TinyConfig, tmp_path: Path) -> None:
    """What only training would allocate is not allocated for an evaluation, or it is refused."""
    config = tiny_config(*CASES["ppo"])
    plain = config.model_dump(mode="json")
    plain["algorithm"]["params"] |= {"n_steps": 10**13, "batch_size": 10**13}
    files, _ = snapshot.capture(_trained(config), {})
    checkpoint = checkpoints.commit(tmp_path, 64, files, {"config": plain})
    try:
        assert len(evaluation.evaluate_checkpoint(checkpoint).returns) == 4
    except (CheckpointError, ConfigError) as refusal:
        assert "\n" not in str(refusal)


def test_a_checkpoint_of_another_network_is_damage(tiny_config: TinyConfig, tmp_path: Path) -> None:
    """A model that does not fit the manifest's configuration is refused."""
    model = _trained(tiny_config())
    other = tiny_config("algorithm.params.policy_kwargs.net_arch=[9]")
    with pytest.raises(CheckpointDamaged, match="does not fit"):
        evaluation.evaluate_checkpoint(_commit(model, other, tmp_path))


@pytest.mark.parametrize("name", ["model.zip", "vecnormalize.npz"])
def test_a_damaged_checkpoint_is_not_scored(tiny_config: TinyConfig, tmp_path: Path, name: str) -> None:
    """One flipped byte in what evaluation reads, and there is no score."""
    config = tiny_config(*CASES["ppo"])
    file = Path(_commit(_trained(config), config, tmp_path).address) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointDamaged, match="SHA-256"):
        evaluation.evaluate_checkpoint(checkpoints.find(tmp_path))


def test_sb3_loads_our_files(tiny_config: TinyConfig, tmp_path: Path) -> None:
    """model.zip and vecnormalize.pkl of a checkpoint are SB3's own formats, with the same numbers."""
    config = tiny_config(*CASES["ppo"])
    model = _trained(config)
    folder = Path(_commit(model, config, tmp_path).address)
    loaded = type(model).load(folder / "model.zip")
    assert models.parameters_sha256(loaded) == models.parameters_sha256(model)
    bare = envs.training_env(config).unwrapped
    normalizer = VecNormalize.load(str(folder / "vecnormalize.pkl"), bare)
    assert np.array_equal(normalizer.obs_rms.mean, model.get_vec_normalize_env().obs_rms.mean)  # type: ignore[union-attr]
