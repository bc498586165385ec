"""Every file under `configs/` works, and every mistake in an override is answered in one line."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ale_py  # noqa: F401  # registers Atari games
import gymnasium as gym
import pytest
from pydantic import ValidationError

from rl_research.config import (
    CONFIG_DIR,
    RUN_DIR,
    Config,
    WandbSettings,
    algorithms,
    choices,
    compose_config,
    compose_experiment,
    groups,
    load_config,
    settings,
    validated,
)
from rl_research.errors import ConfigError

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
FILES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONFIG_DIR.glob("*/*.yaml")
    if path.stem != "base" and path.parent.name != "experiment"
)
MANDATORY = {
    "storage=s3": "s3://bucket/prefix",
    "storage=gcs": "gs://bucket/prefix",
    "storage=azure": "az://container/prefix",
}


# ---------------------------------------------------------------- the files


@pytest.mark.parametrize("choice", FILES)
def test_every_file_of_every_group_composes(choice: str) -> None:
    """Each file that a group offers is valid by its name alone, given a bucket if it needs one."""
    url = [f"storage.url={MANDATORY[choice]}"] if choice in MANDATORY else []
    config = load_config([choice, *url])
    group, name = choice.split("=")
    if group == "algorithm":
        assert config.algorithm.name == name
        assert config.algorithm.params == {}
    elif group == "env":
        assert gym.spec(config.env.id).id == config.env.id
    elif group == "wandb":
        assert config.wandb.mode == name
    elif url:
        assert config.storage.url == MANDATORY[choice]


def test_groups_and_choices_are_the_files() -> None:
    """The lists shown to users are the folders and files of `configs/`, without the shared base."""
    assert groups() == ["algorithm", "env", "experiment", "storage", "wandb"]
    assert choices("experiment") == EXPERIMENTS
    assert choices("wandb") == ["disabled", "offline", "online"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_complete(name: str) -> None:
    """An experiment file is named as its file, runs a known environment, and cites its score."""
    config = load_config([f"experiment={name}"])
    env, algorithm = name.rsplit("_", 1)
    assert config.experiment.name == config.name == name
    assert config.algorithm == load_config([f"experiment={name}", f"algorithm={algorithm}"]).algorithm
    assert config.env.id == load_config([f"env={env}"]).env.id == gym.spec(config.env.id).id
    cls = algorithms.algorithm_class(config.algorithm.name)
    assert set(config.algorithm.params) <= set(inspect.signature(cls.__init__).parameters)
    published = config.experiment.published
    assert published is not None
    assert "RL Baselines3 Zoo" in published.source
    assert ("-v2" in published.source) == env.startswith("lunarlander")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "lunarlander" not in name])
def test_every_experiment_builds_its_algorithm(name: str) -> None:
    """The constructor and its policy take what the file says (LunarLander needs an extra)."""
    config = load_config([f"experiment={name}"])
    env = gym.make(config.env.id)
    made = algorithms.constructor_arguments(config.algorithm.params, env.action_space, 1)
    made |= {"buffer_size": 100} if "buffer_size" in made else {}
    cls = algorithms.algorithm_class(config.algorithm.name)
    if algorithms.is_on_policy(cls):  # a rollout of one environment is shorter
        made |= {"n_steps": made.get("n_steps", 64) * config.env.n_envs}
    model = cls(config.algorithm.policy, env, device="cpu", seed=0, **made)
    assert model.policy.action_space == env.action_space


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_evaluated_and_committed_often_enough(name: str) -> None:
    """Every published experiment gets at least 8 evaluations and 3 checkpoints, and at most 50."""
    config = load_config([f"experiment={name}"])
    steps = config.experiment.total_timesteps
    assert 8 <= steps / config.evaluation.every <= 50
    assert 3 <= steps / config.checkpoint.every <= 50


# ---------------------------------------------------------------- overrides


def test_no_override_gives_the_documented_default() -> None:
    """Without a word, the experiment is PPO on CartPole, offline, without an account or a store."""
    config = load_config()
    assert (config.algorithm.name, config.env.id) == ("ppo", "CartPole-v1")
    assert (config.wandb.mode, config.storage.url, config.run_id) == ("offline", None, None)
    assert config.wandb.dir == RUN_DIR
    assert config.name == "CartPole-v1__ppo"


def test_the_yaml_says_what_the_schema_says() -> None:
    """The defaults of config.yaml and those of `Config` are the same, so neither can mislead."""
    config = load_config()
    bare = Config(algorithm=config.algorithm, env=config.env)
    assert config == bare


def test_overrides_win_over_the_experiment() -> None:
    """A setting given by hand beats the experiment file, whichever comes first; the rest stays."""
    given = ["experiment.total_timesteps=2_000", "algorithm.params.gamma=0.5", "env.n_envs=16"]
    for overrides in (["experiment=cartpole_ppo", *given], [*given, "experiment=cartpole_ppo"]):
        config = load_config(overrides)
        assert config.experiment.total_timesteps == 2_000
        assert config.algorithm.params["gamma"] == 0.5
        assert config.algorithm.params["gae_lambda"] == 0.8
        assert config.env.n_envs == 16


def test_groups_can_be_swapped() -> None:
    """Groups are chosen independently of each other, and of a setting inside them."""
    config = load_config(["env=pendulum", "algorithm=sac", "wandb=disabled", "env.n_envs=2"])
    assert (config.env.id, config.env.n_envs) == ("Pendulum-v1", 2)
    assert (config.algorithm.name, config.wandb.mode) == ("sac", "disabled")
    assert load_config(["experiment=acrobot_ppo", "env=cartpole"]).env.id == "CartPole-v1"


def test_a_later_override_wins() -> None:
    """Of two values for one setting the last one counts, as on any command line."""
    assert load_config(["experiment.seed=1", "experiment.seed=2"]).experiment.seed == 2


def test_a_new_hyperparameter_needs_no_plus() -> None:
    """An argument that no file mentions is set as any other; Hydra's `+` is allowed, not needed."""
    for key in ("algorithm.params.vf_coef", "+algorithm.params.vf_coef", "++algorithm.params.vf_coef"):
        assert load_config([f"{key}=0.25"]).algorithm.params == {"vf_coef": 0.25}


@pytest.mark.parametrize(
    ("override", "tags"),
    [
        ("wandb.tags=[a,b]", ("a", "b")),
        ("wandb.tags=[]", ()),
        ("wandb.tags=['a,b','c=d']", ("a,b", "c=d")),
        ("wandb.tags=[two words, 'nächtlich']", ("two words", "nächtlich")),
        ("wandb.tags=[größer als, b, 'c, ü']", ("größer als", "b", "c, ü")),
        ("wandb.tags=[2026,x]", ("2026", "x")),
    ],
)
def test_tags_are_a_list(override: str, tags: tuple[str, ...]) -> None:
    """W&B tags are written as a list, with quotes where a tag holds a comma or an equals sign."""
    assert load_config([override]).wandb.tags == tags


@pytest.mark.parametrize(
    ("override", "notes"),
    [
        ("wandb.notes=two words", "two words"),
        ("wandb.notes=größer → 学習", "größer → 学習"),
        ("wandb.notes=a=b", "a=b"),
        ("wandb.notes='lr=3e-4, gamma=0.9'", "lr=3e-4, gamma=0.9"),
        ("wandb.notes='50%: #1 {of} [many]'", "50%: #1 {of} [many]"),
        ("wandb.notes=null", None),
        ("wandb.notes='null'", "null"),
    ],
)
def test_values_may_hold_anything(override: str, notes: str | None) -> None:
    """Spaces, other alphabets and `=` are part of a value; quotes protect what has a meaning."""
    assert load_config([override]).wandb.notes == notes


@pytest.mark.parametrize("run_id", ["my-run_1", "5", "007", "2026.11.22", "2026.11", "1_000", "1e5", "true"])
def test_a_run_id_stays_the_text_that_was_given(run_id: str) -> None:
    """A run_id that looks like a number keeps its digits, so it still names the same folder."""
    assert load_config([f"run_id={run_id}"]).run_id == run_id


@pytest.mark.parametrize(
    ("override", "section", "text"),
    [
        ("experiment.name=5", "experiment", "5"),
        ("experiment.name=1_000", "experiment", "1_000"),
        ("wandb.name=2026.10", "wandb", "2026.10"),
    ],
)
def test_a_text_may_look_like_a_number(override: str, section: str, text: str) -> None:
    """A name made of digits is a name, digit for digit."""
    assert getattr(load_config([override]), section).name == text


def test_storage_takes_any_url() -> None:
    """URLs pass unquoted, and options arrive as the file system's own arguments."""
    config = load_config(
        ["storage=s3", "storage.url=s3://bucket/a/b", "storage.options.endpoint_url=http://localhost:9000"]
    )
    assert config.storage.url == "s3://bucket/a/b"
    assert config.storage.options == {"endpoint_url": "http://localhost:9000"}


def test_a_config_is_frozen() -> None:
    """What was checked cannot be changed afterwards."""
    config = load_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.experiment.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.run_id = "other"  # type: ignore[misc]


def test_a_config_is_frozen_at_any_depth() -> None:
    """Arguments cannot be changed in place either, nor dicts and lists inside them."""
    config = load_config(["experiment=acrobot_dqn", "env.kwargs={a: 1}", "storage.options.b=2"])
    params = config.algorithm.params
    for frozen in (params, params["policy_kwargs"], config.env.kwargs, config.storage.options):
        with pytest.raises(TypeError, match="frozen"):
            frozen["x"] = 1
        with pytest.raises(TypeError, match="frozen"):
            frozen.update(x=1)
    with pytest.raises(TypeError, match="frozen"):
        params["policy_kwargs"]["net_arch"].append(1)
    with pytest.raises(TypeError, match="frozen"):
        load_config().algorithm.params["x"] = 1
    copied = dict(params)
    copied["x"] = 1
    assert "x" not in params


def test_a_frozen_config_copies_and_dumps_plainly() -> None:
    """Pickle and deepcopy keep it frozen and equal; a dump holds ordinary dicts and lists only."""
    config = load_config(["experiment=acrobot_dqn"])
    for made in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert made == config
        with pytest.raises(TypeError, match="frozen"):
            made.algorithm.params["policy_kwargs"]["x"] = 1
    for mode in ("json", "python"):
        params = config.model_dump(mode=mode)["algorithm"]["params"]
        assert type(params) is type(params["policy_kwargs"]) is dict
        assert type(params["policy_kwargs"]["net_arch"]) is list
    json.dumps(config.model_dump(mode="json"))


def test_a_run_id_given_later_is_checked_too() -> None:
    """`with_run_id` refuses what `load_config` would, in the same words."""
    assert load_config().with_run_id("a").run_id == "a"
    with pytest.raises(ConfigError, match=r"^run_id=a/b: use 1 to 64 letters"):
        load_config().with_run_id("a/b")


def test_an_experiment_keeps_the_words_that_describe_it() -> None:
    """An experiment is handed on with its overrides, as they were given, and as a run once it has an id."""
    words = ["env=pendulum", "experiment.seed=3", "algorithm=sac"]
    experiment = compose_experiment(line for line in words)
    assert (experiment.overrides, experiment.config.run_id) == (tuple(words), None)
    assert experiment.config == load_config(words)
    run = experiment.with_run_id("mine")
    config = run.config
    assert (config.run_id, config.run_dir, config.name) == ("mine", Path("runs/mine"), "Pendulum-v1__sac")
    assert run.overrides == experiment.overrides
    assert compose_experiment([*words, "run_id=mine"]).config == run.config
    with pytest.raises(ValueError, match="no run yet"):
        assert experiment.config.run_dir


def test_a_section_can_be_validated_alone() -> None:
    """A part of a configuration is explained like the whole, with its place in front."""
    assert validated(WandbSettings, {"group": 1}, "wandb").group == "1"
    with pytest.raises(ConfigError) as caught:
        validated(WandbSettings, {"projct": 1, "tags": [""], "mode": "x"}, "wandb")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any(re.search(r"^'wandb\.projct' .*'wandb\.project'", line) for line in lines)
    assert any(line.startswith("wandb.mode=x: should be 'online'") for line in lines)
    assert any("For instance wandb.tags=[training,ppo]" in line for line in lines)


def test_settings_are_listed_with_their_meaning() -> None:
    """Every setting of the schema has a description for the help."""
    assert settings()["experiment.seed"] == "seed of everything random in training"
    assert all(settings().values())


# ---------------------------------------------------------------- experiments, changed


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["algorithm=ppo"], True),
        (["env.n_envs=8"], True),
        (["experiment.seed=3", "experiment.name=mine", "evaluation.episodes=3"], True),
        (["wandb=disabled", "run_id=a", "checkpoint.every=0"], True),
        (["env=pendulum"], False),
        (["env.n_envs=16"], False),
        (["algorithm.params.gamma=0.5"], False),
        (["~algorithm.params.gamma"], False),
        (["experiment.total_timesteps=5"], False),
        (["experiment.total_timesteps=5", "experiment.published={mean: 1, source: me}"], True),
    ],
)
def test_a_published_score_stands_beside_what_it_was_reached_with(overrides: list[str], kept: bool) -> None:
    """Another environment, budget or hyperparameter drops the score; a seed or a name does not."""
    published = load_config(["experiment=cartpole_ppo", *overrides]).experiment.published
    assert (published is not None) == kept


def test_the_last_choice_of_a_group_wins() -> None:
    """Of two files for one group the last one counts, and null takes an experiment back."""
    assert load_config(["env=cartpole", "env=pendulum"]).env.id == "Pendulum-v1"
    assert load_config(["experiment=acrobot_dqn", "experiment=null"]) == load_config()


def test_a_setting_can_be_taken_back() -> None:
    """Hydra's `~` removes what the experiment file sets."""
    params = load_config(["experiment=cartpole_ppo", "~algorithm.params.gamma"]).algorithm.params
    assert "gamma" not in params
    assert "gae_lambda" in params


def test_a_config_survives_json() -> None:
    """Written to JSON and read back, a configuration is the same; manifests rely on it."""
    config = load_config(["experiment=mountaincar_continuous_sac", "wandb.tags=[a,b]"])
    assert Config.model_validate_json(config.model_dump_json()) == config


# ---------------------------------------------------------------- Hydra's process-wide state


def test_two_threads_compose_at_once() -> None:
    """Threads that load different experiments at the same time each get their own."""
    wanted = {"cartpole_ppo": "CartPole-v1", "acrobot_dqn": "Acrobot-v1"}
    wrong: list[object] = []
    start = threading.Barrier(len(wanted))

    def load(name: str) -> None:
        start.wait()
        for seed in range(8):
            try:
                config = load_config([f"experiment={name}", f"experiment.seed={seed}"])
                if (config.env.id, config.experiment.seed) != (wanted[name], seed):
                    wrong.append(config)
            except Exception as error:  # noqa: BLE001  # whatever it is, the main thread reports it
                wrong.append(error)

    threads = [threading.Thread(target=load, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


UNDER_HYDRA = """
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from rl_research.config import load_config
from rl_research.errors import ConfigError

@hydra.main(version_base="1.3", config_path=".", config_name="mine")
def main(mine):
    before = GlobalHydra.instance().hydra
    config = load_config(["env=pendulum", f"experiment.seed={mine.seed}"])
    assert (config.env.id, config.experiment.seed) == ("Pendulum-v1", 7)
    assert config.wandb.dir == HydraConfig.get().runtime.output_dir
    try:
        load_config(["env=nowhere"])
    except ConfigError:
        pass
    assert before is not None and GlobalHydra.instance().hydra is before
    assert HydraConfig.get().job.name == "program"
    print("fine")

main()
"""


def test_load_config_works_inside_a_users_hydra_program(tmp_path: Path) -> None:
    """Under the user's own `@hydra.main` it uses that output folder and gives that state back."""
    (tmp_path / "mine.yaml").write_text("seed: 7\n")
    program = tmp_path / "program.py"
    program.write_text(UNDER_HYDRA)
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HYDRA_FULL_ERROR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------- mistakes

TAKES = r".*It takes: .*learning_rate"
HINT = r" Did you mean '{}'\?"
NOT_AN_OVERRIDE = r"is not an override.*[Ww]rite key=value"
ONE_VALUE = r"one experiment takes one value"
SAC = ("algorithm=sac", "env=pendulum")
DQN = ("algorithm=dqn",)

#: The overrides, and what the one line says: the setting, the value, the remedy.
MISTAKES: list[tuple[tuple[str, ...], str]] = [
    # misspelt keys
    (("experiment.sed=1",), r"^'experiment\.sed' is not a setting\." + HINT.format("experiment.seed")),
    (("sed=3",), r"^'sed' is not a setting\." + HINT.format("experiment.seed")),
    (("n_envs=4",), r"^'n_envs' is not a setting\." + HINT.format("env.n_envs")),
    (("experimnt.seed=1",), r"^'experimnt' is not a setting\." + HINT.format("experiment")),
    (("evn=cartpole",), r"^'evn' is not a setting\." + HINT.format("env")),
    (("wandb.projct=x",), r"^'wandb\.projct' is not a setting\." + HINT.format("wandb.project")),
    (("checkpoint.evry=5",), r"^'checkpoint\.evry'.*" + HINT.format("checkpoint.every")),
    (("foo=1",), r"^'foo' is not a setting\. It takes: experiment, algorithm, env, .*runs_dir\.$"),
    # misspelt choices
    (("algorithm=poo",), r"^algorithm=poo: there is no such algorithm\." + HINT.format("ppo")),
    (("env=cartpol",), r"^env=cartpol: .*" + HINT.format("cartpole") + r" Choose from: acrobot"),
    (("wandb=onlne",), r"^wandb=onlne: .*" + HINT.format("online")),
    (("wandb=base",), r"^wandb=base: .* Choose from: disabled, offline, online\.$"),
    (("storage=s4",), r"^storage=s4: .* Choose from: azure, gcs, local, s3\.$"),
    (("experiment=cartpole_pp0",), r"^experiment=cartpole_pp0: .*" + HINT.format("cartpole_ppo")),
    (("algorithm=../env/cartpole",), r"^algorithm=\.\./env/cartpole: .* Choose from: a2c"),
    (("env=",), r"^env=: there is no such env\. Choose from: acrobot"),
    (("env=null",), r"^env=null: .*Choose from: acrobot"),
    (("algorithm=null",), r"^algorithm=null: .*Choose from: a2c"),
    (("wandb=null",), r"^wandb=null: .*Choose from: disabled"),
    (("storage=null",), r"^storage=null: .*Choose from: azure"),
    (("algorithm=PPO",), r"^algorithm=PPO: .*" + HINT.format("ppo")),
    (("algorithm=[ppo,a2c]",), r"^algorithm=\[.*\]: .*Choose from: a2c"),
    (("algorithm.name=pp",), r"^algorithm\.name=pp: .*" + HINT.format("ppo")),
    (("algorithm.policy=MlpPolcy",), r"^algorithm\.policy=MlpPolcy: .*" + HINT.format("MlpPolicy")),
    (("wandb.mode=onlin",), r"^wandb\.mode=onlin: should be 'online', 'offline' or 'disabled'"),
    (("env.vec_env=thread",), r"^env\.vec_env=thread: should be 'dummy' or 'subproc'"),
    # wrong types
    (("experiment.seed=three",), r"^experiment\.seed=three: .*integer.* For instance experiment\.seed="),
    (("experiment.seed=1.5",), r"^experiment\.seed=1\.5: .*integer.* For instance experiment\.seed="),
    (("experiment.seed=",), r"^experiment\.seed=: .*integer.* For instance experiment\.seed="),
    (("experiment.seed.x=1",), r"^experiment\.seed=\{x: 1\}: .*integer"),
    (("env.normalize=maybe",), r"^env\.normalize=maybe: .* For instance env\.normalize=true"),
    (("env.kwargs=5",), r"^env\.kwargs=5: .* For instance env\.kwargs="),
    (("wandb.tags=a",), r"^wandb\.tags=a: .* For instance wandb\.tags=\[training,ppo\]"),
    (("wandb.tags={a:1}",), r"^wandb\.tags=\{.*a.*1\}: .*wandb\.tags=\[training,ppo\]"),
    (("algorithm.params=5",), r"^algorithm\.params=5: .* For instance algorithm\.params="),
    (("algorithm.params=[1]",), r"^algorithm\.params=\[1\]: .* For instance algorithm\.params="),
    (("run_id=[a]",), r"^run_id=\[a\]: .* For instance run_id="),
    (("env.normalize=5",), r"^env\.normalize=5: should be true or false or a mapping\. For"),
    (("experiment.seed=null",), r"^experiment\.seed=null: .*integer"),
    (("experiment.seed=true",), r"^experiment\.seed=true: should be a number, not true or false"),
    (("env.n_envs=true",), r"^env\.n_envs=true: should be a number, not true or false"),
    (("env.id=",), r"^env\.id=: should have at least 1 character\. For instance env\.id=CartPole"),
    (("wandb.tags=[a,'']",), r"^wandb\.tags\.1=: should have .* For instance wandb\.tags=\["),
    (("wandb.tags.0=",), r"^wandb\.tags\.0=: .* wandb\.tags=\[a,b\]"),
    (("wandb.tags.x=1",), r"^wandb\.tags\.x=1: wandb\.tags is a list.*wandb\.tags=\[a,b\]"),
    (
        ("experiment=cartpole_ppo", "experiment.published.mean=x"),
        r"published\.mean=x: should be a number\. For instance experiment\.published\.mean=",
    ),
    (("env.normalize={nrom_reward:false}",), r"nrom_reward=false: .*" + HINT.format("norm_reward")),
    (("env.normalize={clip_obs:abc}",), r"^env\.normalize\.clip_obs=abc: should be a number"),
    (("env.normalize.norm_obs=1",), r"^env\.normalize\.norm_obs=1: should be true or false"),
    # out of range
    (("wandb.init_timeout=inf",), r"^wandb\.init_timeout=inf: should be a finite number\. For"),
    (("experiment.seed=-1",), r"^experiment\.seed=-1: .*or equal to 0.* For instance experiment\.seed="),
    (("experiment.seed=99999999999",), r"^experiment\.seed=99999999999: .*equal to 2147483647"),
    (("evaluation.seed=-5",), r"^evaluation\.seed=-5: .*or equal to 0.* For instance evaluation\.seed="),
    (("evaluation.seed=0",), r"^evaluation\.seed=0: .*training seeds.* choose an evaluation\.seed"),
    (("experiment.total_timesteps=0",), r"^experiment\.total_timesteps=0: .*or equal to 1.* For instance"),
    (("env.n_envs=0",), r"^env\.n_envs=0: .*or equal to 1.* For instance env\.n_envs=1"),
    (("checkpoint.keep_last=0",), r"^checkpoint\.keep_last=0: .*or equal to 1"),
    (("wandb.init_timeout=0",), r"^wandb\.init_timeout=0: should be greater than 0"),
    (("wandb.project=a/b",), r"^wandb\.project=a/b: W&B project names cannot contain /"),
    (("run_id=a/b",), r"^run_id=a/b: use 1 to 64 letters, digits.* For instance run_id="),
    (("run_id=../x",), r"^run_id=\.\./x: use 1 to 64 letters, digits"),
    (('run_id=""',), r"^run_id=: use 1 to 64 letters, digits"),
    # hyperparameters
    (("algorithm.params.learning_rat=1",), r"learning_rat=1: .*" + HINT.format("learning_rate") + TAKES),
    ((*SAC, "algorithm.params.n_epochs=3"), r"n_epochs=3: SAC has no argument 'n_epochs'" + TAKES),
    (
        ("experiment=cartpole_ppo", "algorithm=sac"),
        r"^algorithm=sac: experiment=cartpole_ppo .* ppo.*: algorithm=sac env=cartpole\.$",
    ),
    (
        ("experiment=cartpole_ppo", "algorithm.name=dqn", "env=acrobot"),
        r"^algorithm=dqn: .*: algorithm=dqn env=acrobot\.$",
    ),
    (("algorithm.params.learning_rate=fast",), r"learning_rate=fast: should be a number, or lin_0\.001"),
    (("algorithm.params.gamma=1.5",), r"gamma=1\.5: should be between 0 and 1"),
    (("algorithm.params.n_epochs=2.5",), r"n_epochs=2\.5: should be a whole number"),
    (("algorithm.params.n_steps=0",), r"n_steps=0: should be greater than 0"),
    (("algorithm.params.batch_size=100",), r"batch_size=100: it does not divide.* Choose .* 64 or 128"),
    (("experiment=cartpole_ppo", "env.n_envs=3"), r"batch_size=256: .*32 × 3 = 96.* Choose .* 48 or 96"),
    (("algorithm.params.seed=3",), r"params\.seed=3: .*set experiment\.seed"),
    (("algorithm.params.policy_kwargs.net_arc=[64]",), r"net_arc=\[64\]: .*" + HINT.format("net_arch")),
    ((*SAC, "algorithm.params.action_noise.type=norml"), r"type=norml: .*" + HINT.format("normal")),
    ((*SAC, "algorithm.params.action_noise=normal"), r"action_noise=normal: .*\{type: normal, std: 0\.1\}"),
    ((*SAC, "algorithm.params.ent_coef=automatic"), r"ent_coef=automatic: .*'auto' or 'auto_0\.1'"),
    ((*DQN, "algorithm.params.buffer_size=1e6"), r"buffer_size=1000000\.0: should be a whole number"),
    # no configuration names code to run
    (("_target_=os.system",), r"^'_target_' is not a setting"),
    (("+algorithm._target_=os.system",), r"^'algorithm\._target_' is not a setting"),
    (("env._target_=os.system",), r"^'env\._target_' is not a setting"),
    (("algorithm.params._target_=os.system",), r"_target_=os\.system: PPO has no argument '_target_'"),
    (
        ("algorithm.params.rollout_buffer_class=os.system",),
        r"buffer_class=os\.system: it takes a class, which no configuration can name",
    ),
    # not an override at all
    (("wandb.tags=[a,b",), r"^'wandb\.tags=\[a,b' " + NOT_AN_OVERRIDE),
    (("storage.options.key={",), r"^'storage\.options\.key' " + NOT_AN_OVERRIDE),
    (("experiment.name=it's",), r"experiment\.name=it's\W* " + NOT_AN_OVERRIDE),
    (("experiment.seed",), r"^'experiment\.seed' " + NOT_AN_OVERRIDE),
    (("experiment.seed:1",), r"^'experiment\.seed:1' " + NOT_AN_OVERRIDE),
    (("experiment..seed=1",), r"^'experiment\.\.seed=1' " + NOT_AN_OVERRIDE),
    (("--seed=3",), r"^'--seed=3' " + NOT_AN_OVERRIDE),
    (("",), r"^'' " + NOT_AN_OVERRIDE),
    (("=",), r"^'=' " + NOT_AN_OVERRIDE),
    (("=5",), r"^'=5' " + NOT_AN_OVERRIDE),
    # prefixes and sweeps of Hydra
    (("+experiment.new=1",), r"^'experiment\.new' is not a setting\. Did you mean"),
    (("++foo=1",), r"^'foo' is not a setting"),
    (("~foo",), r"~foo.*not a setting"),
    (("~algorithm",), r"^algorithm is not set\. Give algorithm="),
    (("+experiment=cartpole_ppo",), r"\+experiment=cartpole_ppo.*[Ww]rite experiment=cartpole_ppo"),
    (("experiment.seed=1,2",), r"^'experiment\.seed=1,2': " + ONE_VALUE + r" for experiment\.seed"),
    (("experiment.seed=range(3)",), r"^'experiment\.seed=range\(3\)': " + ONE_VALUE),
    (("algorithm=ppo,sac",), r"^'algorithm=ppo,sac': " + ONE_VALUE + r" for algorithm"),
    # what only the user can know
    (("storage=s3",), r"^storage\.url is not set\. Give storage\.url="),
    (("storage=azure",), r"^storage\.url is not set\. Give storage\.url="),
    (("storage=gcs",), r"^storage\.url is not set\. Give storage\.url="),
    (("experiment.published.mean=5",), r"^experiment\.published\.source is not set\. Give "),
    (("experiment.seed=???",), r"^experiment\.seed is not set\. Give experiment\.seed="),
    (("experiment.seed=${x}",), r"^experiment\.seed=\$\{x\}: .*'x' not found\.$"),
    (("run_id=${oc.env:NOPE}",), r"^run_id=\$\{oc\.env:NOPE\}: .*variable 'NOPE' not found"),
    (("wandb.name=${no:1}",), r"^wandb\.name=\$\{no:1\}: Unsupported interpolation type no"),
    # Hydra's own
    (("hydra.run.dir=x",), r"^'hydra\.run\.dir=x': hydra settings are not part of an experiment"),
    (("hydra/launcher=basic",), r"hydra settings are not part of an experiment"),
    (("env@other=cartpole",), r"^'env@other=cartpole': .* write env=NAME"),
    (("~experiment.nam",), r"^'~experiment\.nam': .*" + HINT.format("name")),
    (("wandb.notes=a,b",), ONE_VALUE + r".*\"wandb\.notes='a,b'\""),
]
INTERNAL = r"pydantic|omegaconf|Error merging|full_key|object_type|config_loader|\+\+algorithm|mismatched"


@pytest.mark.parametrize(("overrides", "says"), MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES])
def test_a_mistake_is_one_line_with_a_remedy(overrides: tuple[str, ...], says: str) -> None:
    """A mistake raises ConfigError in one line that names the setting and value and helps."""
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(list(overrides))
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert not re.search(INTERNAL, text)


def test_every_mistake_gets_its_line() -> None:
    """Several mistakes are reported together, one line each, so one attempt mends them all."""
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment.seed=-1", "env.n_envs=0", "wandb.projct=x"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for setting in ("experiment.seed", "env.n_envs", "wandb.project"):
        assert sum(setting in line for line in lines) == 1


@pytest.mark.parametrize(
    "override",
    [
        "storage.options.key=[HUNTER2",
        "storage.options.key=HUNTER2,x",
        "storage.options=HUNTER2",
        "storage.options.key=${oc.env:X,HUNTER2",
        "storage.options={key: HUNTER2",
        "storage={options: {key: HUNTER2}}",
        "storage.optoins.key=HUNTER2",
    ],
)
def test_a_mistake_shows_no_secret(override: str) -> None:
    """What is given to a file system may be a key, so an error names the setting alone."""
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    assert "storage" in str(caught.value)
    assert "HUNTER2" not in str(caught.value)


@pytest.mark.parametrize("overrides", [None, 5, {"env": "pendulum"}, b"env=pendulum"])
def test_overrides_of_another_kind_are_named(overrides: Any) -> None:
    """What is no list of strings is refused by its type."""
    with pytest.raises(ConfigError, match=r"must be a list of strings .* not of type \w+"):
        load_config(overrides)


@pytest.mark.parametrize("item", [None, 5, ["env=pendulum"]])
def test_every_override_is_a_string(item: Any) -> None:
    """A list with something else in it is refused by that item."""
    with pytest.raises(ConfigError, match=r"is not an override: it must be a string"):
        load_config([item])


def test_overrides_may_come_from_any_iterable() -> None:
    """A tuple and a generator are as good as a list."""
    assert load_config(("env=pendulum",)) == load_config(["env=pendulum"])
    assert load_config(line for line in ["env=pendulum"]) == load_config(["env=pendulum"])
    assert compose_config(line for line in ["run_id=1_000"]).run_id == "1_000"


# ---------------------------------------------------------------- what it costs


def _python(program: str) -> str:
    """What *program* prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_config_is_cheap() -> None:
    """Neither torch nor SB3 nor Hydra is imported before a configuration is loaded."""
    imported = _python(
        "import sys, rl_research.config as config; config.settings(); config.choices('env'); print(*sys.modules)"
    ).split()
    assert "rl_research.config.schema" in imported
    assert not {"torch", "stable_baselines3", "sb3_contrib", "hydra", "omegaconf", "gymnasium"} & set(imported)


def test_an_algorithm_whose_package_is_missing_says_how_to_get_it() -> None:
    """Without sb3-contrib, its algorithms answer with the command that installs it."""
    said = _python(
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from rl_research.config import load_config\n"
        "from rl_research.errors import ConfigError\n"
        "print(load_config(['algorithm=a2c']).algorithm.name)\n"
        "try: load_config(['algorithm=trpo'])\n"
        "except ConfigError as error: print(error)"
    )
    taken, refused = said.splitlines()
    assert taken == "a2c"
    assert refused.startswith("algorithm=trpo: it is in sb3-contrib")
    assert "pip install" in refused


def test_overrides_are_a_list() -> None:
    """A single string, the commonest slip in Python, is named as such and not spelt out."""
    with pytest.raises(ConfigError, match=r"must be a list of strings, such as \['env=pendulum'\]"):
        load_config("env=pendulum")


def test_a_refused_override_leaves_nothing_behind() -> None:
    """After a mistake the next call starts from scratch."""
    with pytest.raises(ConfigError):
        load_config(["env=nowhere", "experiment.seed=5"])
    assert load_config() == load_config([])
    assert load_config().experiment.seed == 0
