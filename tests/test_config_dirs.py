"""Configurations of a user's own: found before ours, named in help, recorded, and one line where they are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from helpers import Call

from rl_research.config import choices, compose_experiment, groups, load_config, origins
from rl_research.errors import ConfigError
from rl_research.orchestration import deployment_file
from rl_research.runs.description import shown_overrides
from rl_research.studies import plan_study

_EXPERIMENT = """\
# @package _global_
defaults:
  - override /algorithm: ppo
  - override /env: cartpole
experiment: {name: my_first, total_timesteps: 2_000}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an experiment, an environment of our name and a group of its own in ``lab``."""
    files = {
        "experiment/my_first.yaml": _EXPERIMENT,
        "env/cartpole.yaml": "id: CartPole-v0\n",
        "curriculum/hard.yaml": "# @package _global_\nevaluation: {episodes: 3}\n",
    }
    for name, text in files.items():
        (path := tmp_path / "lab" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lab"


@pytest.mark.usefixtures("lab")
def test_a_users_files_are_found_before_ours() -> None:
    """An experiment and a group of the user's own are chosen by name, and their ``env/cartpole`` hides ours."""
    config = load_config(["config_dirs=[lab]", "experiment=my_first", "curriculum=hard"])
    assert (config.name, config.env.id, config.evaluation.episodes) == ("my_first", "CartPole-v0", 3)
    assert config.config_dirs == ("lab",) == load_config(["config_dirs=lab"]).config_dirs
    assert load_config(["experiment=cartpole_ppo"]).env.id == "CartPole-v1"


@pytest.mark.usefixtures("lab")
def test_the_environment_names_folders_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RL_RESEARCH_CONFIG_PATH holds folders as PATH does, and the run records them like the others."""
    (tmp_path / "more" / "experiment").mkdir(parents=True)
    (tmp_path / "more" / "experiment" / "second.yaml").write_text(_EXPERIMENT)
    monkeypatch.setenv("RL_RESEARCH_CONFIG_PATH", os.pathsep.join(["lab", "", str(tmp_path / "more")]))
    assert load_config(["experiment=my_first"]).config_dirs == ("lab", str(tmp_path / "more"))
    assert load_config(["experiment=second", "config_dirs=[lab]"]).name == "my_first"
    spelt = load_config(["config_dirs=[./lab/,lab]", "experiment=my_first"]).config_dirs
    assert spelt == ("./lab/", str(tmp_path / "more")), "a folder that is named twice counts once"


@pytest.mark.usefixtures("lab")
def test_a_runs_words_name_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``overrides.txt`` and manifests hold makes the run again, also where the environment named the folders."""
    monkeypatch.setenv("RL_RESEARCH_CONFIG_PATH", "lab")
    assert shown_overrides(compose_experiment(["experiment=my_first"])) == [
        "config_dirs=['lab']",
        "experiment=my_first",
    ]


@pytest.mark.usefixtures("lab")
def test_hydras_searchpath_stays() -> None:
    """``hydra.searchpath`` finds what is in neither, and can be given beside the folders."""
    assert load_config(["hydra.searchpath=[lab]", "experiment=my_first"]).env.id == "CartPole-v1"
    both = ["hydra.searchpath=[nowhere]", "config_dirs=[lab]", "experiment=my_first"]
    with pytest.warns(UserWarning, match="nowhere"):
        assert load_config(both).env.id == "CartPole-v0"


def test_the_origin_of_each_choice(lab: Path) -> None:
    """Each choice is listed once, with the user's folder that it is in."""
    assert "curriculum" in groups([str(lab)])
    assert "my_first" in choices("experiment", [str(lab)])
    assert origins("env", ["lab"])["cartpole"] == "lab"
    assert origins("env", ["lab"])["pendulum"] is None


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("words", [("--config-dir", "lab", "--help"), ("--help", "--config-dir", "lab")])
def test_help_lists_the_users_choices_with_their_folder(words: tuple[str, ...], call: Call) -> None:
    """What ``--config-dir`` adds stands in the help, wherever on the line it was given."""
    code, out, _ = call("train", *words)
    assert code == 0
    assert "my_first (lab)" in out
    assert "curriculum=NAME" in out


@pytest.mark.usefixtures("lab")
def test_the_option_becomes_an_override(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--config-dir`` travels among the overrides, so flow runs, members and ``overrides.txt`` have it."""
    code, out, err = call("train", "--config-dir", "lab", "experiment=my_first", "--cfg")
    assert (code, yaml.safe_load(out)["config_dirs"]) == (0, ["lab"]), err
    planned = []
    monkeypatch.setattr("rl_research.studies.plan_study", lambda *given: planned.append(given) or plan_study(*given))
    monkeypatch.setattr("rl_research.cli.study.prefect_api", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    call("study", "mine", "--config-dir", "lab", "experiment=my_first")
    assert planned[0][1] == ["config_dirs=['lab']", "experiment=my_first"]
    member = plan_study("mine", planned[0][1], [0]).members[0]
    assert compose_experiment(member.overrides).config.config_dirs == ("lab",)


def test_a_deployment_names_the_folder(lab: Path) -> None:
    """A deployment's overrides are checked with the folder that they name."""
    del lab
    raw = yaml.safe_load((Path(__file__).parents[1] / "deployment.yaml").read_text())
    entry = {**raw["deployments"][0], "entrypoint": "rl_research.flows.train:train"}
    entry["parameters"] = {"overrides": ["config_dirs=[lab]", "experiment=my_first"]}
    assert list(deployment_file.problems({**raw, "deployments": [entry]})) == []
    entry["parameters"] = {"overrides": ["experiment=my_first"]}
    assert "no such experiment" in " ".join(deployment_file.problems({**raw, "deployments": [entry]}))


_BROKEN = {
    "broken": ("a: [1,\nb: 2\n", "line 1"),
    "twice": ("a: 1\na: 2\n", "duplicate key a"),
    "listed": ("- 1\n", "Cannot merge"),
    "no_defaults": ("# @package _global_\ndefaults: ppo\n", "must be a list"),
    "no_package": ("experiment: {seed: 3}\n", "# @package _global_"),
    "no_algorithm": (
        "# @package _global_\ndefaults:\n  - override /algorithm: ppoo\n",
        "Could not find 'algorithm/ppoo'",
    ),
    "no_setting": ("# @package _global_\nexperiment: {sed: 3}\n", "Did you mean 'experiment.seed'"),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_file_that_cannot_be_used_is_one_line(name: str, lab: Path) -> None:
    """A file that is no YAML, or no configuration, is a line that names it."""
    text, reason = _BROKEN[name]
    (lab / "experiment" / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(["config_dirs=[lab]", f"experiment={name}"])
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        ("[la]", "there is no such folder. Did you mean 'lab'?"),
        ("[lab/experiment/my_first.yaml]", "it is a file"),
        ("[.]", "it holds no file of a group, such as experiment/my_first.yaml. Did you mean 'lab'?"),
        ("[lab,copy]", "env/cartpole.yaml is in both of them"),
        ("[1]", "should be a list of folders"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(folders: str, reason: str, lab: Path) -> None:
    """A folder that is missing, a file, empty, or offers what another one offers is refused in a line."""
    if "copy" in folders:
        (lab.with_name("copy") / "env").mkdir(parents=True)
        (lab.with_name("copy") / "env" / "cartpole.yaml").write_text("id: CartPole-v1\n")
    with pytest.raises(ConfigError) as caught:
        load_config([f"config_dirs={folders}"])
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_variable_is_named_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """A wrong RL_RESEARCH_CONFIG_PATH is a line that names it, and exit code 2."""
    monkeypatch.setenv("RL_RESEARCH_CONFIG_PATH", "nowhere")
    code, out, err = call("train", "--cfg")
    assert (code, out) == (2, "")
    assert "RL_RESEARCH_CONFIG_PATH=nowhere: there is no such folder" in err
