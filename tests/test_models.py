"""A model's parameters: one hash everywhere, loaded without a pickle, refused when they do not fit."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from rl_research.config import Config
from rl_research.errors import CheckpointDamaged, ConfigError
from rl_research.tracking import saved_policy
from rl_research.training import envs, models

TinyConfig = Callable[..., Config]
CASES = {
    "ppo": ("algorithm=ppo", "env=cartpole"),
    "a2c": ("algorithm=a2c", "env=pendulum"),
    "dqn": ("algorithm=dqn", "env=cartpole"),
    "sac": ("algorithm=sac", "env=pendulum"),
    "td3": ("algorithm=td3", "env=pendulum"),
}


@pytest.fixture
def make(tiny_config: TinyConfig) -> Iterator[Callable[..., BaseAlgorithm]]:
    """A factory of algorithms whose environments are closed in the end."""
    opened = []

    def factory(*overrides: str) -> BaseAlgorithm:
        config = tiny_config(*overrides)
        opened.append(envs.training_env(config))
        return models.build(config, opened[-1])

    yield factory
    for env in opened:
        env.close()


def _zip(model: BaseAlgorithm) -> bytes:
    return saved_policy.policy_files(model)[saved_policy.MODEL]


def _with(model_zip: bytes, **members: bytes | None) -> bytes:
    """*model_zip* with members replaced, or left out where None; a name's dot is written ``__``."""
    changes = {name.replace("__", "."): data for name, data in members.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model_zip)) as old, zipfile.ZipFile(out, "w") as new:
        for name in {*old.namelist(), *changes}:
            data = changes[name] if name in changes else old.read(name)
            if data is not None:
                new.writestr(name, data)
    return out.getvalue()


def _saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


# ---------------------------------------------------------------- the hash


@pytest.mark.slow
def test_the_hash_is_the_same_in_another_process(make: Callable[..., BaseAlgorithm], tmp_path: Path) -> None:
    """Saved models loaded by SB3 in another process have the same hashes."""
    made = {case: make(*overrides) for case, overrides in CASES.items()}
    for case, model in made.items():
        (tmp_path / f"{case}.zip").write_bytes(_zip(model))
    code = (
        "import json, sys, stable_baselines3 as sb3;"
        "from rl_research.training.models import parameters_sha256;"
        "print(json.dumps({case: parameters_sha256(getattr(sb3, case.upper()).load(f'{sys.argv[1]}/{case}'))"
        " for case in sys.argv[2:]}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *made], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == {c: models.parameters_sha256(m) for c, m in made.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_seed_decides_the_hash(make: Callable[..., BaseAlgorithm], case: str) -> None:
    """The same seed builds the same parameters, another seed others."""
    one, same, other = (models.parameters_sha256(make(*CASES[case], f"experiment.seed={seed}")) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize("case", CASES)
def test_a_single_bit_of_any_tensor_changes_the_hash(make: Callable[..., BaseAlgorithm], case: str) -> None:
    """Every learned tensor counts, to its last bit: target networks and the entropy coefficient too."""
    model = make(*CASES[case])
    before = models.parameters_sha256(model)
    tensors = models.learned_tensors(model)
    expected = {"sac": ("log_ent_coef", "critic_target"), "td3": ("actor_target",), "dqn": ("q_net_target",)}
    for part in expected.get(case, ()):
        assert any(part in name for name in tensors)
    for name, tensor in tensors.items():
        flat = tensor.detach().view(-1).view(torch.int32)
        flat[-1] ^= 1
        assert models.parameters_sha256(model) != before, name
        flat[-1] ^= 1
    assert models.parameters_sha256(model) == before


def test_what_is_not_learned_does_not_count(make: Callable[..., BaseAlgorithm]) -> None:
    """Counters and the time of saving leave the hash alone."""
    model = make()
    before = models.parameters_sha256(model)
    model.num_timesteps += 1
    model.start_time = 12345
    assert models.parameters_sha256(model) == before


# ---------------------------------------------------------------- building


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("algorithm=sac", "env=cartpole"), "cannot act in CartPole-v1"),
        (("algorithm=td3", "env=cartpole"), "Choose from: a2c, ars, dqn, ppo, qrdqn, recurrent_ppo, trpo."),
        (("algorithm=dqn", "env=pendulum"), "cannot act in Pendulum-v1"),
        (("algorithm.policy=MultiInputPolicy",), "MultiInputPolicy"),
        (("algorithm.policy=CnnPolicy",), "CartPole-v1"),
        (("algorithm=dqn", "algorithm.policy=MultiInputPolicy"), "MultiInputPolicy"),
        (("algorithm.params.use_sde=true",), "CartPole-v1"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    make: Callable[..., BaseAlgorithm], overrides: tuple[str, ...], said: str
) -> None:
    """An algorithm and an environment that do not fit together are a `ConfigError` with the reason."""
    with pytest.raises(ConfigError) as caught:
        make(*overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_one_line(tiny_config: TinyConfig, device: str) -> None:
    """Asking for a GPU where there is none is refused when the configuration is read."""
    with pytest.raises(ConfigError, match=f"algorithm.params.device={device}") as caught:
        tiny_config(f"algorithm.params.device={device}")
    assert "auto" in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_the_evaluated_model_acts_like_the_trained_one(
    make: Callable[..., BaseAlgorithm], tiny_config: TinyConfig, case: str
) -> None:
    """Rebuilt for evaluation, a model has the same hash and actions, and no big buffer."""
    trained = make(*CASES[case])
    config = tiny_config(*CASES[case], "experiment.seed=99")
    env = envs.evaluation_env(config, 0, 1)
    rebuilt = models.build_for_evaluation(config, env)
    assert models.parameters_sha256(rebuilt) != models.parameters_sha256(trained)
    models.load_parameters(rebuilt, _zip(trained))
    assert models.parameters_sha256(rebuilt) == models.parameters_sha256(trained)
    observation = trained.observation_space.sample()
    assert (
        trained.predict(observation, deterministic=True)[0] == rebuilt.predict(observation, deterministic=True)[0]
    ).all()
    if hasattr(rebuilt, "replay_buffer"):
        assert rebuilt.replay_buffer.buffer_size == 1
    env.close()


# ---------------------------------------------------------------- loading what others made


class Bomb:
    """Pickled, it creates a file wherever it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_bomb_works(tmp_path: Path) -> None:
    """The files used below do run code when they are unpickled."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()
    torch.load(io.BytesIO(_saved({"x": Bomb(tmp_path / "second")})), weights_only=False)
    assert (tmp_path / "second").exists()


@pytest.mark.parametrize("member", ["policy__pth", "pytorch_variables__pth"])
def test_a_pickle_among_the_tensors_is_refused_and_not_run(
    make: Callable[..., BaseAlgorithm], tmp_path: Path, member: str
) -> None:
    """A member that would run code is damage, in torch's own format or as a bare pickle."""
    model = make(*CASES["sac"])
    before = models.parameters_sha256(model)
    marker = tmp_path / "marker"
    for payload in (_saved({"x": Bomb(marker)}), pickle.dumps(Bomb(marker)), pickle.dumps({"x": Bomb(marker)})):
        with pytest.raises(CheckpointDamaged, match=r"cannot be read as tensors"):
            models.load_parameters(model, _with(_zip(model), **{member: payload}))
    assert not marker.exists()
    assert models.parameters_sha256(model) == before


def test_the_pickled_part_is_never_looked_at(make: Callable[..., BaseAlgorithm], tmp_path: Path) -> None:
    """A malicious pickle in ``data`` is not run while the tensors are taken; SB3's `load` runs it."""
    import base64

    trained, fresh = make(*CASES["ppo"]), make(*CASES["ppo"], "experiment.seed=5")
    marker = tmp_path / "marker"
    with zipfile.ZipFile(io.BytesIO(_zip(trained))) as archive:
        data = json.loads(archive.read("data"))
    data["lr_schedule"] = {
        ":type:": "<class 'function'>",
        ":serialized:": base64.b64encode(pickle.dumps(Bomb(marker))).decode(),
    }
    evil = _with(_zip(trained), data=json.dumps(data).encode())
    models.load_parameters(fresh, evil)
    assert models.parameters_sha256(fresh) == models.parameters_sha256(trained)
    assert not marker.exists()
    (tmp_path / "evil.zip").write_bytes(evil)
    with suppress(Exception):  # whatever becomes of it, the code has run
        type(trained).load(tmp_path / "evil.zip")
    assert marker.exists(), "this zip was not dangerous, so the test shows nothing"


@pytest.mark.parametrize("garbage", [b"", b"x", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), bytes(100_000)])
def test_garbage_is_refused(make: Callable[..., BaseAlgorithm], garbage: bytes) -> None:
    """Bytes that are no zip, or a zip without parameters, are damage in one line."""
    with pytest.raises(CheckpointDamaged, match=r"model\.zip") as caught:
        models.load_parameters(make(), garbage)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_zip_is_refused(make: Callable[..., BaseAlgorithm], cut: float) -> None:
    """A zip that lost its end is damage."""
    model = make()
    whole = _zip(model)
    with pytest.raises(CheckpointDamaged):
        models.load_parameters(model, whole[: int(len(whole) * cut)])


@pytest.mark.parametrize(
    "policy",
    [None, b"", b"garbage", _saved([1, 2]), _saved({}), _saved(7), _saved({"a": "b"}), _saved({1: 2})],
    ids=["missing", "empty", "garbage", "list", "no names", "number", "text", "numbers"],
)
def test_parameters_that_are_none_are_refused(make: Callable[..., BaseAlgorithm], policy: bytes | None) -> None:
    """A policy without tensors by the right names is damage in one line."""
    model = make()
    with pytest.raises(CheckpointDamaged) as caught:
        models.load_parameters(model, _with(_zip(model), policy__pth=policy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (CASES["ppo"], ("algorithm.params.policy_kwargs.net_arch=[9]",)),
        (CASES["ppo"], ("env=acrobot",)),
        (CASES["ppo"], CASES["dqn"]),
        (CASES["dqn"], CASES["sac"]),
        (CASES["sac"], CASES["ppo"]),
    ],
)
def test_another_model_s_parameters_are_refused(
    make: Callable[..., BaseAlgorithm], ours: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    """Other shapes or names than the configuration's are damage, said in one line."""
    with pytest.raises(CheckpointDamaged, match="does not fit") as caught:
        models.load_parameters(make(*ours), _zip(make(*theirs)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(3, 3), "text", None])
def test_a_variable_of_another_shape_is_refused(make: Callable[..., BaseAlgorithm], value: Any) -> None:
    """SAC's entropy coefficient is one number and is not replaced by anything else."""
    model = make(*CASES["sac"])
    evil = _with(_zip(model), pytorch_variables__pth=_saved({"log_ent_coef": value}))
    with pytest.raises(CheckpointDamaged):
        models.load_parameters(model, evil)


def test_a_missing_variable_is_refused(make: Callable[..., BaseAlgorithm]) -> None:
    """Parameters that lack the entropy coefficient are not half loaded in silence."""
    model = make(*CASES["sac"])
    with pytest.raises(CheckpointDamaged):
        models.load_parameters(model, _with(_zip(model), pytorch_variables__pth=_saved({})))


def test_a_variable_that_is_not_the_model_s_is_left_alone(make: Callable[..., BaseAlgorithm]) -> None:
    """A name from a stranger's zip cannot reach other attributes of the model."""
    model = make(*CASES["ppo"])
    evil = _with(_zip(model), pytorch_variables__pth=_saved({"policy.log_std": torch.ones(1)}))
    before = models.parameters_sha256(model)
    models.load_parameters(model, evil)
    assert models.parameters_sha256(model) == before


def test_a_zip_that_claims_to_be_huge_is_refused_unread(make: Callable[..., BaseAlgorithm]) -> None:
    """A member whose header announces more than the limit is not unpacked."""
    out = io.BytesIO()
    archive = zipfile.ZipFile(out, "w")
    with archive.open("policy.pth", "w", force_zip64=True) as member:
        member.write(b"small")
    archive.filelist[0].file_size = 5 << 30
    archive.close()
    with pytest.raises(CheckpointDamaged, match="larger than"):
        models.load_parameters(make(), out.getvalue())


def test_a_zip_bomb_does_not_fill_the_memory(make: Callable[..., BaseAlgorithm]) -> None:
    """A small zip that unpacks to hundreds of megabytes is refused without unpacking them."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("policy.pth", "w", force_zip64=True) as member,
    ):
        for _ in range(200):
            member.write(bytes(1 << 20))
    model = make()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointDamaged):
            models.load_parameters(model, out.getvalue())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 << 20
