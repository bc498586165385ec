"""What has to stay true: the environment keeps Gymnasium's rules, and the experiment trains, resumes and acts."""

from pathlib import Path

from gymnasium.utils.env_checker import check_env

import my_lab.envs
import rl_research

CONFIGS = Path(__file__).parents[1] / "configs"


def test_the_environment_keeps_gymnasiums_rules() -> None:
    """Spaces, seeds and returned values are what algorithms rely on."""
    check_env(my_lab.envs.Corridor(), skip_render_check=True)


def test_my_first_experiment_learns(tmp_path: Path) -> None:
    """After its few seconds of training, the policy walks straight to the end."""
    record = rl_research.train([f"config_dirs=['{CONFIGS}']", "experiment=my_first", f"runs_dir='{tmp_path}'"])
    assert record.scores is not None
    assert record.scores.mean > 0
    policy = rl_research.load_policy(str(record.run_dir), trust_plugins=True)
    assert policy.predict([-1.0])[0] == 1
