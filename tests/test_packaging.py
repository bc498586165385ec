"""The wheel: it brings the configurations and works in an empty folder; importing it costs nothing."""

from __future__ import annotations

import importlib.util
import json
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers import environment, tiny

from rl_research.config import CONFIG_DIR, compose_experiment, load_config
from rl_research.training import stages

_ROOT = Path(__file__).parents[1]
_NOT_TO_TRAIN = {
    "prefect.server",
    "sqlalchemy",
    "alembic",
    "uvicorn",
    "matplotlib",
    "moviepy",
    "imageio",
    "PIL",
    "pandas",
    "scipy",
    "jinja2",
    "aiohttp",
    "botocore",
    "s3fs",
    "gcsfs",
    "paramiko",
}
_FIRST_STEP = """
import os, sys
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class First(CartPoleEnv):
    def step(self, action):
        if not os.path.exists("modules"):
            with open("modules", "w") as out:
                out.write(" ".join(sys.modules))
        return super().step(action)


gym.register("First-v0", entry_point=First, max_episode_steps=500)
"""
_HEAVY = {"torch", "wandb", "prefect", "hydra", "omegaconf", "stable_baselines3", "gymnasium", "numpy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    if importlib.util.find_spec("hatchling") and importlib.util.find_spec("build"):
        how = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(_ROOT)]
    else:
        how = ["-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(_ROOT)]
    done = subprocess.run([sys.executable, *how], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment with the wheel, and with this one's other packages."""
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, timeout=120)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install",
            "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel),
        ],
        check=True, timeout=120,
    )  # fmt: skip
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    # A path in a .pth file makes that folder's packages importable and obeys no .pth file in it, so
    # that an editable installation there is not seen.
    here = dict.fromkeys([sysconfig.get_path("purelib"), *site.getsitepackages()])
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in here))
    return home / "bin"


@pytest.mark.slow
def test_the_wheel_holds_the_configurations_and_no_tests(wheel: Path) -> None:
    """The wheel has every configuration, template, stub and flow, and no top-level name but `rl_research`."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in CONFIG_DIR.rglob("*.yaml"):
        assert f"rl_research/configs/{path.relative_to(CONFIG_DIR).as_posix()}" in names
    assert {"rl_research/report/page.html", "rl_research/flows/train.py", "rl_research/py.typed"} <= names
    stubs = {path.relative_to(_ROOT).as_posix() for path in _ROOT.glob("rl_research/*/__init__.pyi")}
    assert stubs
    assert stubs <= names
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"rl_research"}


_THEIR_FLOWS = """raise RuntimeError("a user's own package was imported in place of ours")"""


@pytest.mark.slow
def test_a_folder_with_flows_of_the_users_own(installed: Path, tmp_path: Path) -> None:
    """Beside a user's own package ``flows``, training uses `rl_research.flows` and leaves theirs alone."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text(_THEIR_FLOWS)
    words = tiny(Path("runs"), "mine", "wandb=disabled", "evaluation.enabled=false")
    done = subprocess.run(
        [installed / "python", "-m", "rl_research", "train", "--json", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env=environment(PYTHONPATH=""),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flow", [path.stem for path in sorted((_ROOT / "flows").glob("*.py")) if path.stem != "__init__"]
)
def test_a_flow_by_the_path_of_its_module(flow: str, installed: Path, tmp_path: Path) -> None:
    """``rl_research.flows.NAME:NAME``, as a deployment of an installed wheel spells it, is the flow NAME."""
    code = (
        "import sys; from prefect.flows import load_flow_from_entrypoint as load; "
        "print(load(sys.argv[1], use_placeholder_flow=False).name)"
    )
    done = subprocess.run(
        [installed / "python", "-c", code, f"rl_research.flows.{flow}:{flow}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env=environment(PYTHONPATH=""),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [flow]


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Installed from the wheel, the command composes its configurations and trains, far from any source."""
    where = subprocess.run(
        [installed / "python", "-c", "import rl_research; print(rl_research.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=environment(PYTHONPATH=""),
    )  # fmt: skip
    assert where.stdout.startswith(str(installed.parent))
    composed = subprocess.run(
        [installed / "rl-research", "train", "--cfg", "experiment=cartpole_ppo"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True, env=environment(PYTHONPATH=""),
    )  # fmt: skip
    assert yaml.safe_load(composed.stdout)["algorithm"]["name"] == "ppo"
    assert list(tmp_path.iterdir()) == []
    words = tiny(Path("runs"), "mine", "wandb=offline")
    done = subprocess.run(
        [installed / "rl-research", "train", "--json", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env=environment(PYTHONPATH=""),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["global_step"]) == ("finished", 96)
    assert (tmp_path / answer["run_dir"] / "report.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_a_project_of_ones_own_needs_no_checkout(installed: Path, tmp_path: Path) -> None:
    """`init` of an installed wheel writes a project whose experiment trains, with nothing but the wheel."""
    own = environment(PYTHONPATH="")
    subprocess.run([installed / "rl-research", "init", "first_lab"], cwd=tmp_path, check=True, timeout=120, env=own)
    words = ["experiment=my_first", "experiment.total_timesteps=256", "evaluation.enabled=false", "--json"]
    done = subprocess.run(
        [installed / "rl-research", "train", "--config-dir", "configs", *words], cwd=tmp_path / "first_lab",
        capture_output=True, text=True, timeout=240, check=False, env=own,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"


@pytest.mark.parametrize(
    "statement",
    [
        "import rl_research",
        "import rl_research; rl_research.__version__",
        "import rl_research.cli.command",
        "import rl_research.errors",
    ],
)
def test_importing_costs_nothing(statement: str) -> None:
    """No heavy library comes along until it is needed."""
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert not _HEAVY & set(done.stdout.split())


@pytest.mark.slow
def test_composing_needs_no_prefect_and_no_wandb() -> None:
    """A configuration is checked without the orchestrator and without W&B."""
    code = "import sys, rl_research; rl_research.load_config(); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert not {"prefect", "wandb"} & set(done.stdout.split())
    assert load_config().algorithm.name == "ppo"


@pytest.mark.slow
def test_nothing_is_imported_before_training_that_it_does_not_need(tmp_path: Path) -> None:
    """At the first step there is no server, no store's client and nothing that draws in the process."""
    (tmp_path / "first.py").write_text(_FIRST_STEP)
    words = tiny(tmp_path / "runs", "mine", "env.id=first:First-v0", "env.check=false", "evaluation.enabled=false")
    subprocess.run(
        [sys.executable, "-m", "rl_research", "train", *words], cwd=tmp_path, check=True,
        capture_output=True, timeout=400, env=environment(PYTHONPATH=str(tmp_path)),
    )  # fmt: skip
    modules = set((tmp_path / "modules").read_text().split())
    assert {"torch", "prefect", "wandb"} <= modules
    assert not _NOT_TO_TRAIN & modules


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its score."""
    words = tiny(tmp_path_factory.mktemp("trained") / "runs", "mine", "wandb=disabled")
    return stages.run_all_stages(compose_experiment(words)).dir


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (("sync", "--dry-run", "."), _HEAVY | _NOT_TO_TRAIN),
        (("checkpoints", "RUN"), {"torch", "stable_baselines3", "gymnasium", "prefect", "wandb"}),
        (("verify", "RUN"), {"prefect", "wandb"}),
        (("prune", "--dry-run", "RUNS"), {"torch", "stable_baselines3", "prefect", "wandb"}),
        pytest.param(("evaluate", "RUN"), {"wandb"} | _NOT_TO_TRAIN, marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_a_verb_imports_what_it_needs(words: tuple[str, ...], without: set[str], trained: Path, tmp_path: Path) -> None:
    """Looking at runs needs no torch, scoring no W&B, and neither a server in the process."""
    places = {"RUN": str(trained), "RUNS": str(trained.parent)}
    given = [places.get(word, word) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "rl_research", *given], cwd=tmp_path, capture_output=True, text=True,
        timeout=400, check=False, env=environment(PYTHONPROFILEIMPORTTIME="1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not without & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
