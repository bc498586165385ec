"""Export: what other programs load acts as the policy does, on observations as the environment gives them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from helpers import Call, tiny
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import rl_research
from rl_research.errors import RLResearchError
from rl_research.training import FORMATS, OPSET, acting

_POLICIES = {
    "ppo on CartPole": ("env=cartpole",),
    "ppo on Pendulum, normalised": ("env=pendulum", "env.normalize=true"),
    "maskable_ppo": (
        "algorithm=maskable_ppo",
        "env.check=false",
        "env.id=space_envs:Masked-v0",
        "env.kwargs={actions: MultiDiscrete}",
        *(f"algorithm.params.{param}" for param in ("n_steps=16", "batch_size=16")),
    ),
    "ars": ("algorithm=ars", "env=pendulum", "~algorithm.params.policy_kwargs"),
    "ppo with gSDE": ("env=pendulum", "algorithm.params.use_sde=true"),
    "sac": ("algorithm=sac", "env=pendulum", "env.normalize={norm_reward: false}"),
    "td3": ("algorithm=td3", "env=pendulum"),
    "dqn": ("algorithm=dqn", "env=cartpole", "env.normalize=true"),
    "qrdqn": ("algorithm=qrdqn", "env=cartpole"),
    "Dict observations": (
        "env.id=space_envs:Spaces-v0",
        "env.kwargs={observations: dict, actions: Box}",
        "algorithm.policy=MultiInputPolicy",
        "env.normalize={norm_obs_keys: [seen]}",
    ),
    "images": (
        "env.id=space_envs:Spaces-v0",
        "env.kwargs={observations: image, actions: MultiDiscrete}",
        "algorithm.policy=CnnPolicy",
        "algorithm.params.policy_kwargs={net_arch: [8]}",
    ),
}

_EXTRA = "onnx and onnxruntime come with the extra onnx, which `make install` brings"


def _trained(runs_dir: Path, *overrides: str) -> str:
    words = tiny(runs_dir, "mine", "wandb=disabled", "evaluation.final_episodes=3", *overrides)
    return str(rl_research.train(words).run_dir)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run that normalises what it sees."""
    return _trained(tmp_path_factory.mktemp("export") / "runs", *_POLICIES["ppo on Pendulum, normalised"])


def _run_onnx(path: Path, inputs: dict[str, Any]) -> Any:
    session = pytest.importorskip("onnxruntime", reason=_EXTRA).InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    assert [one.name for one in session.get_inputs()] == list(inputs)
    return session.run(None, inputs)[0]


def _run_torchscript(path: Path, inputs: dict[str, Any]) -> Any:
    return torch.jit.load(path)(*map(torch.as_tensor, inputs.values())).numpy()


@pytest.mark.parametrize("what", _POLICIES)
def test_100_observations_round_trip(what: str, tmp_path: Path, call: Call) -> None:
    """What was exported returns the actions of `predict` for 100 raw observations, at once and one by one."""
    run = _trained(tmp_path / "runs", *_POLICIES[what])
    policy = rl_research.load_policy(run, trust_plugins=True)
    seen = policy.seen(100)
    expected, _ = policy.predict(seen)
    inputs = seen if isinstance(seen, dict) else {"observation": seen}
    for to, act in {"torchscript": _run_torchscript, "onnx": _run_onnx}.items():
        if to == "onnx":
            pytest.importorskip("onnx", reason=_EXTRA)
        code, out, err = call("export", run, "--to", to, "--output", str(tmp_path / to), "--trust-plugins", "--json")
        assert code == 0, err
        written = json.loads(out)
        (file,) = [tmp_path / to / name for name in written["files"] if name != "export.json"]
        actions = act(file, inputs)
        assert len(actions) == 100
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(act(file, {key: value[:1] for key, value in inputs.items()}), actions[:1], atol=1e-5)
        assert written["observations"] == 100
        assert written["inputs"].keys() == inputs.keys()
        assert written.get("opset") == (OPSET if to == "onnx" else None)


def test_the_opset_is_what_is_stated(pendulum: str, tmp_path: Path, call: Call) -> None:
    """The file says the same opset as the answer."""
    onnx = pytest.importorskip("onnx", reason=_EXTRA)
    assert call("export", pendulum, "--to", "onnx", "--output", str(tmp_path / "out"))[0] == 0
    assert [one.version for one in onnx.load(tmp_path / "out" / "policy.onnx").opset_import] == [OPSET]


def test_zip_is_the_default_and_is_sb3s(pendulum: str, tmp_path: Path, call: Call) -> None:
    """SB3's own `load` takes the two files of a zip export, and acts as the policy does."""
    code, _, err = call("export", pendulum, "--output", str(tmp_path / "out"))
    assert code == 0, err
    env = VecNormalize.load(str(tmp_path / "out" / "vecnormalize.pkl"), DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = PPO.load(tmp_path / "out" / "model.zip", env=env)
    policy = rl_research.load_policy(pendulum)
    seen = policy.seen(20)
    np.testing.assert_array_equal(
        model.predict(env.normalize_obs(seen), deterministic=True)[0], policy.predict(seen)[0]
    )


def test_hub_is_a_folder_with_a_model_card(pendulum: str, tmp_path: Path, call: Call) -> None:
    """The card has score, interval and command, its code runs, and its front matter is what the Hub reads."""
    code, _, err = call("export", pendulum, "--to", "hub", "--output", str(tmp_path / "out"))
    assert code == 0, err
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    scores = rl_research.evaluate(pendulum)
    (metric,) = front["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("mean_reward", f"{scores.mean:.2f} +/- {scores.std:.2f}")
    assert "95 % interval of the mean" in card
    assert "rl-research train experiment.total_timesteps=96" in card
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "results.json", "ppo-Pendulum-v1.zip", "vec_normalize.pkl",
    }  # fmt: skip
    used: dict[str, Any] = {}
    code_block = card.split("```python\n")[1].split("```")[0].replace('"vec_', f'"{tmp_path}/out/vec_')
    exec(code_block.replace('"ppo-', f'"{tmp_path}/out/ppo-'), used)
    assert used["action"].shape == (1, 1)


def test_a_policy_that_acts_otherwise_when_traced_is_refused(
    pendulum: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison with `predict` is made on every export; what fails it is not written."""
    real = acting.Acting.forward
    monkeypatch.setattr(acting.Acting, "forward", lambda self, *seen: real(self, *seen) * 0.5)
    code, _, err = call("export", pendulum, "--to", "torchscript", "--output", str(tmp_path / "out"))
    assert code == RLResearchError.exit_code
    assert "acts otherwise than before" in err
    assert not (tmp_path / "out").exists()


def test_a_policy_with_a_memory_is_refused(tmp_path: Path, call: Call) -> None:
    """RecurrentPPO's policy has no place in a file without a state, and the line says what takes it."""
    size = ("n_steps=16", "batch_size=16", "policy_kwargs={lstm_hidden_size: 8}")
    run = _trained(tmp_path / "runs", "algorithm=recurrent_ppo", *(f"algorithm.params.{one}" for one in size))
    code, out, err = call("export", run, "--to", "torchscript", "--output", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert "it acts with a memory" in err
    assert "--to zip" in err
    assert call("export", run, "--output", str(tmp_path / "out"))[0] == 0


def test_a_missing_package_is_named(pendulum: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the line says what to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = call("export", pendulum, "--to", "onnx", "--output", str(tmp_path / "out"))
    assert (code, "pip install 'rl-research[onnx]'" in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_a_line(pendulum: str, tmp_path: Path, call: Call) -> None:
    """An output that is a file is named in a line."""
    (tmp_path / "out").write_text("mine")
    code, out, err = call("export", pendulum, "--output", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("rl-research:")]
    assert str(tmp_path / "out") in line


def test_a_wrong_format_is_a_line(call: Call) -> None:
    """Only known formats are taken, and they are named."""
    code, out, err = call("export", "mine", "--to", "onx")
    assert (code, out) == (2, "")
    assert all(name in err for name in FORMATS)
