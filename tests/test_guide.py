"""Every code block of docs/logging.md runs as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from rl_research.errors import ConfigError
from rl_research.tracking import BaseCallback
from rl_research.tracking.metric_names import check_name
from rl_research.tracking.settings import ENVIRONMENT

GUIDE = Path(__file__).parents[1] / "docs" / "logging.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


def _inspect(folder: Path) -> Any:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Torch's threads cost more than they give on a network this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a launch without a W&B account."""
    for variable in (*ENVIRONMENT, "WANDB_RUN_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("launch")
def test_the_guide_runs_as_printed() -> None:
    """The Python blocks run in order, and everything they log is in the offline run."""
    env = make_vec_env("CartPole-v1", n_envs=64)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=4096, n_epochs=1, seed=0, device="cpu")
    guide: dict[str, Any] = {
        "config": yaml.safe_load(_blocks("yaml")[0]),
        "env": env,
        "model": model,
        "value": 1.5,
        "value1": "a",
        "value2": 2,
        "state_image": np.zeros((3, 16, 16), np.float32),
        "episode_video": np.zeros((4, 15, 17, 3), np.uint8),
    }
    for block in _blocks("python"):
        exec(compile(block, str(GUIDE), "exec"), guide)
    model.learn(total_timesteps=4096, callback=guide["CustomCallback"](guide["logger"]))
    guide["logger"].finish()

    assert model.num_timesteps == 4096
    record = _inspect(guide["logger"].wandb_dir)
    assert (record["state"], record["project"]) == ("finished", "my_project")
    assert record["tags"] == ["training", "ppo"]
    summary, config = record["summary"], record["config"]
    logged = {"reward", "training/loss", "custom/nested/metric", "custom", "train/value_loss"}
    assert logged | {"rollout/ep_rew_mean"} <= set(summary)
    assert {"state", "episode"} <= {name.split(".")[0] for name in summary}
    assert config["custom_config"] == {"param1": "a", "param2": 2}
    assert "custom/metric" in config["metrics"]
    assert config["env"]["n_envs"] == 64
    folder = guide["logger"].dir
    assert {p.parent.name for p in folder.glob("models/*/model.zip")} == {"best_model-0", "checkpoint-0"}
    assert "| custom |" in (folder / "metrics.md").read_text()


def test_the_offline_block_writes_where_the_guide_says(launch: Path) -> None:
    """With ``dir: logs`` the run is where ``wandb sync logs/wandb/offline-run-*`` finds it."""
    from rl_research.tracking.logger import ExperimentLogger

    with ExperimentLogger(yaml.safe_load(_blocks("yaml")[1])) as logger:
        logger.log_metrics({"reward": 1.0})
    (pattern,) = re.findall(r"^wandb sync (\S+)", _blocks("bash")[0], re.MULTILINE)
    assert [path.resolve() for path in launch.glob(pattern)] == [logger.wandb_dir]


def test_sb3s_own_base_class_refuses_what_ours_allows() -> None:
    """The reason the guide gives is still true, and our base class still lifts it."""
    from stable_baselines3.common.callbacks import BaseCallback as Refusing

    class Ours(BaseCallback):
        pass

    class Theirs(Refusing):
        def _on_step(self) -> bool:
            return True

    with pytest.raises(AttributeError):
        Theirs().logger = None  # type: ignore[misc, assignment]
    ours = Ours()
    ours.logger = self_made = object()
    assert ours.logger is self_made


def test_the_guide_names_every_setting_and_variable() -> None:
    """Settings of the ``wandb`` section and environment variables all stand in the guide."""
    from rl_research.config import WandbSettings

    text = GUIDE.read_text()
    missing = [name for name in (*WandbSettings.model_fields, *ENVIRONMENT) if f"`{name}`" not in text]
    assert not missing


def test_names_in_the_guide_follow_its_rule() -> None:
    """Every metric the guide logs is named by the rule it states."""
    names = re.findall(r'"((?:training|eval|custom)/[^"]+)"', GUIDE.read_text())
    assert names
    assert [check_name(name) for name in names] == names


@pytest.mark.usefixtures("launch")
def test_a_misspelt_setting_of_the_guides_section_is_one_line() -> None:
    """A typo in the ``wandb`` section is refused with the right spelling."""
    from rl_research.tracking.logger import ExperimentLogger

    with pytest.raises(ConfigError, match=r"'wandb.projet' .*Did you mean 'wandb.project'\?"):
        ExperimentLogger({"wandb": {"projet": "x"}})
