"""What a user's own modules register is used by name, checked as our own is, and goes on after a kill."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
from helpers import Call, Nursery, forgotten_plugins, outcome, record_of, steps_committed, tiny

from rl_research import checkpoints
from rl_research.config import compose_experiment, load_config, plugins, register
from rl_research.errors import ConfigError
from rl_research.training import finished_result, run_all_stages, verify
from rl_research.training.preparation import build

_LAB = "plugins=[own_lab]"
_ONE_OF_EACH = (
    _LAB,
    "algorithm=my_ppo",
    "algorithm.policy=gentle",
    "algorithm.params.decay=0.8",
    "algorithm.params.n_steps=16",
    "algorithm.params.batch_size=16",
    "algorithm.params.learning_rate={cosine: {start: 0.01}}",
    "algorithm.params.policy_kwargs={net_arch: [8], features_extractor_class: narrow, "
    "features_extractor_kwargs: {width: 4}, activation_fn: squared, optimizer_class: plain_sgd, gain: 2.0}",
    "env.wrappers=[{noisy_reward: {scale: 0.2}}, {frame_stack_observation: {stack_size: 2}}]",
    "env.vec_wrappers=[{smooth: {keep: 0.3}}]",
    "env.n_envs=2",
    "env.normalize={norm_obs: false}",
    "callbacks=[{counting: {freq: 2}}]",
    "sinks=[{steps: {path: '{run_dir}/steps.txt'}}, {exact_steps: {path: '{run_dir}/exact.txt'}}]",
)


@pytest.fixture(scope="module", autouse=True)
def _own_lab() -> Iterator[None]:
    with forgotten_plugins("own_lab"):
        yield


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, for plugins that no other test finds registered or imported."""
    before = {kind: dict(kind.registered) for kind in register.kinds().values()}
    modules = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for kind, names in before.items():
        kind.registered.clear()
        kind.registered.update(names)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """A process in which segments of runs are forked."""
    warm = Nursery(tmp_path_factory.mktemp("nursery") / "stderr.txt")
    yield warm
    warm.close()


# ---------------------------------------------------------------- what names stand for


def test_one_of_each_is_what_it_was_registered_as(tmp_path: Path) -> None:
    """Every name stands for the user's class, with its arguments, in the algorithm that is built."""
    from own_lab import Cosine, Gentle, MyPPO, Narrow, NoisyReward, PlainSGD, Smooth, Squared

    config = load_config(tiny(tmp_path, "x", *_ONE_OF_EACH))
    env, model = build(config)
    try:
        assert type(model) is MyPPO
        assert model.decay == 0.8
        assert isinstance(model.policy, Gentle)
        assert model.policy.gain == 2.0
        assert isinstance(model.policy.features_extractor, Narrow)
        assert model.policy.features_extractor.features_dim == 4
        assert model.policy.activation_fn is Squared
        assert isinstance(model.policy.optimizer, PlainSGD)
        assert isinstance(model.learning_rate, Cosine)
        assert model.lr_schedule(1.0) == pytest.approx(0.01)
        assert env.get_attr("scale") == [0.2, 0.2]
        assert isinstance(env.venv, Smooth)  # type: ignore[attr-defined]  # likewise
        assert NoisyReward.__name__ in str(env.envs[0])  # type: ignore[attr-defined]  # DummyVecEnv has them
        assert env.observation_space.shape == (2, 4)
    finally:
        env.close()


def test_gymnasiums_wrappers_have_both_spellings(tmp_path: Path) -> None:
    """``ClassName`` and ``class_name`` name the same wrapper; those that write files have no name."""
    assert register.wrapper.find("w", "frame_stack_observation") is gym.wrappers.FrameStackObservation
    assert register.wrapper.find("w", "TimeAwareObservation") is gym.wrappers.TimeAwareObservation
    for name in register.wrapper.ours():
        if not name.startswith(("Jax", "jax", "ArrayC", "array_c", "Numpy", "numpy")):  # packages that are extras
            assert issubclass(register.wrapper.find("w", name), gym.Wrapper)  # type: ignore[arg-type]  # a class
    with pytest.raises(ConfigError, match="no such wrapper"):
        load_config(tiny(tmp_path, "x", "env.wrappers=[{RecordVideo: {video_folder: /tmp}}]"))


def test_wrappers_are_in_evaluation_and_film_as_in_training(tmp_path: Path) -> None:
    """One recipe makes the environments of training, evaluation and film."""
    from rl_research.training import envs

    config = load_config(tiny(tmp_path, "x", *_ONE_OF_EACH))
    for env in (envs.evaluation_env(config, 7, 1), envs.film_env(config, 7)):
        assert env.observation_space.shape == (2, 4)
        assert env.get_attr("scale") == [0.2]
        env.close()


def test_an_algorithm_needs_no_file_and_fits_its_base(tmp_path: Path) -> None:
    """``algorithm=my_ppo`` begins with PPO's file; with PPO's experiments, too, whose score is no longer comparable."""
    config = load_config([_LAB, "algorithm=my_ppo", "experiment=cartpole_ppo"])
    assert (config.algorithm.name, config.algorithm.params["gae_lambda"]) == ("my_ppo", 0.8)
    assert config.experiment.published is None
    with pytest.raises(ConfigError, match="holds settings of ppo"):
        load_config([_LAB, "algorithm=my_sac", "experiment=cartpole_ppo"])
    with pytest.raises(ConfigError, match="cannot act in CartPole-v1"):
        build(load_config([*tiny(tmp_path, "x", _LAB, "algorithm=sac"), "algorithm.name=my_sac"]))


def test_the_variable_and_entry_points_bring_plugins(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RL_RESEARCH_PLUGINS names modules that the run records, an installed package's entry point needs no naming."""
    for name in ("by_variable", "by_package"):
        source = f"from rl_research import register\n@register.schedule('{name}')\nclass S: ...\n"
        (lab / f"{name}.py").write_text(source)
    info = lab / "lab-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rl_research.plugins]\nlab = by_package\n")
    monkeypatch.syspath_prepend(lab)
    monkeypatch.setenv("RL_RESEARCH_PLUGINS", "by_variable")
    plugins._installed.cache_clear()
    try:
        assert load_config().plugins == ("by_variable",)
    finally:
        plugins._installed.cache_clear()
    assert {"by_package", "by_variable"} <= set(register.registered()["schedule"])


def test_help_and_doctor_show_what_is_registered(call: Call) -> None:
    """The names of plugins are where the settings are."""
    code, out, _ = call("train", _LAB, "--help")
    assert code == 0
    assert "noisy_reward" in out
    assert "my_ppo" in out
    code, out, _ = call("doctor", _LAB)
    assert "noisy_reward" in out
    assert "my_ppo" in out


# ---------------------------------------------------------------- mistakes

_PPO = "from stable_baselines3 import PPO\n"
_REGISTER = "from rl_research import register\n"
_BAD: dict[str, tuple[dict[str, str], list[str], str]] = {
    "missing": ({}, ["plugins=[nonesuch]"], "plugins=[nonesuch]: there is no module nonesuch in the current folder"),
    "raises": (
        {"bad.py": "x = 1\n\n\nx.nonesuch"},
        ["plugins=[bad]"],
        "plugins=[bad]: importing bad raised AttributeError: 'int' object has no attribute 'nonesuch'. Look at ",
    ),
    "place": ({"bad.py": "x = 1\n\n\nx.nonesuch"}, ["plugins=[bad]"], "bad.py, line 4: x.nonesuch"),
    "syntax": ({"bad.py": "def f(:\n"}, ["plugins=[bad]"], "raised SyntaxError: invalid syntax (bad.py, line 1)"),
    "lacks a package": ({"bad.py": "import nonesuch_package"}, ["plugins=[bad]"], "No module named 'nonesuch_package'"),
    "exits": ({"bad.py": "raise SystemExit(3)"}, ["plugins=[bad]"], "importing bad raised SystemExit: 3."),
    "registers nothing": ({"bad.py": "x = 1"}, ["plugins=[bad]"], "importing it has registered nothing. Decorate"),
    "no class": (
        {"bad.py": f"{_REGISTER}register.policy('p')(5)"}, ["plugins=[bad]"],
        "policy 'p': 5 is no class that derives from stable_baselines3.common.policies.BasePolicy.",
    ),
    "no name": (
        {"bad.py": f"{_REGISTER}@register.schedule\nclass S: ...\n"}, ["plugins=[bad]"],
        "a name is needed, of letters, digits and '_', as in @rl_research.register.schedule('my_schedule').",
    ),
    "a name of ours": (
        {"bad.py": f"{_REGISTER}{_PPO}@register.algorithm('ppo')\nclass P(PPO): ...\n"}, ["plugins=[bad]"],
        "algorithm 'ppo': the name is taken by what needs no plugin. Choose another.",
    ),
    "gymnasium's name": (
        {"bad.py": f"{_REGISTER}import gymnasium\n@register.wrapper('time_limit')\nclass W(gymnasium.Wrapper): ...\n"},
        ["plugins=[bad]"],
        "the name is taken",
    ),
    "two of one name": (
        {f"{name}.py": f"{_REGISTER}@register.schedule('s')\nclass S: ...\n" for name in ("one", "two")},
        ["plugins=[one,two]"],
        "plugins=[two]: rl_research.register of the schedule 's': two.S and one.S have the same name. Rename one.",
    ),
    "a path": ({"bad.py": ""}, ["plugins=[./own_lab/bad.py]"], "is a module and no path; write plugins=[own_lab.bad]"),
    "an absolute path": ({}, ["plugins=[/tmp/bad.py]"], "is a module and no path"),
    "a number": ({}, ["plugins=[3]"], "is a module and no path; write plugins=[my_lab.extras]"),
    "no list": ({}, ["plugins=5"], "plugins=5: should be a list"),
    "no callback": (
        {"bad.py": f"{_REGISTER}@register.callback('c')\nclass C: ...\n"}, ["plugins=[bad]"],
        "no class that derives from stable_baselines3.common.callbacks.BaseCallback.",
    ),
    "misspelt argument": ({}, [_LAB, "env.wrappers=[{noisy_reward: {scala: 2}}]"], "Did you mean 'scale'?"),
    "argument of the wrong type": (
        {}, [_LAB, "env.wrappers=[{noisy_reward: {scale: loud}}]"],
        "env.wrappers.noisy_reward.scale=loud: should be a number.",
    ),
    "argument that is missing": (
        {}, [_LAB, "callbacks=[counting]"], "callbacks.counting: Counting needs freq. Write {counting: {freq: VALUE}}."
    ),
    "misspelt wrapper": ({}, [_LAB, "env.wrappers=[noisy_rewards]"], "no such wrapper. Did you mean 'noisy_reward'?"),
    "misspelt vec wrapper": ({}, [_LAB, "env.vec_wrappers=[smoth]"], "Did you mean 'smooth'?"),
    "misspelt callback": ({}, [_LAB, "callbacks=[countin]"], "Did you mean 'counting'?"),
    "misspelt sink": ({}, [_LAB, "sinks=[stepz]"], "Did you mean 'steps'?"),
    "misspelt algorithm": ({}, [_LAB, "algorithm=my_pp"], "Did you mean 'my_ppo'?"),
    "misspelt policy": ({}, [_LAB, "algorithm.policy=gentl"], "Did you mean 'gentle'?"),
    "misspelt extractor": (
        {}, [_LAB, "algorithm.params.policy_kwargs.features_extractor_class=narow"], "Did you mean 'narrow'?",
    ),
    "misspelt extractor's argument": (
        {}, [_LAB, "algorithm.params.policy_kwargs.features_extractor_class=narrow",
            "algorithm.params.policy_kwargs.features_extractor_kwargs.wide=3"],
        "features_extractor_kwargs.wide=3: narrow has no argument 'wide'.",
    ),
    "misspelt schedule": ({}, [_LAB, "algorithm.params.learning_rate=cosin"], "Did you mean 'cosine'?"),
    "schedule without its start": ({}, [_LAB, "algorithm.params.learning_rate=cosine"], "Cosine needs start."),
    "an algorithm's misspelt argument": ({}, [_LAB, "algorithm=my_ppo", "algorithm.params.decai=1"], "mean 'decay'?"),
    "an argument of its base": ({}, [_LAB, "algorithm=my_ppo", "algorithm.params.gamma=2"], "between 0 and 1"),
    "two names in one": ({}, [_LAB, "env.wrappers=[{a: {}, b: {}}]"], "should be a list of names, each alone or as"),
    "a wrapper's own refusal": (
        {}, ["env.wrappers=[{frame_stack_observation: {stack_size: 0}}]"],
        "env.wrappers.frame_stack_observation={stack_size: 0}: FrameStackObservation refuses: ",
    ),
    "a callable": ({}, ["env.wrappers=[{TransformReward: {func: abs}}]"], "it takes an object, which no con"),
    "a constructor that cannot be loaded": (
        {"bad.py": f"{_REGISTER}{_PPO}@register.algorithm('p')\nclass P(PPO):\n def __init__(s, policy, env): ...\n"},
        ["plugins=[bad]", "algorithm=p"],
        "P takes no argument _init_setup_model, device, seed, verbose. Let it take **kwargs and pass them to its base.",
    ),
    "a plugin's name without the plugin": ({}, ["callbacks=[nobodys]"], "modules in plugins=[MODULE] register others."),
}  # fmt: skip


@pytest.mark.parametrize("case", _BAD)
def test_a_mistake_is_one_line(lab: Path, call: Call, case: str) -> None:
    """Before anything is trained or written: one line that names the setting, and exit code 2."""
    files, words, says = _BAD[case]
    for name, source in files.items():
        (lab / name).write_text(source)
    code, out, said = call("train", "runs_dir=runs", "wandb=disabled", *words)
    assert (code, out) == (2, "")
    (line,) = said.strip().splitlines()
    assert says in line
    assert not (lab / "runs").exists()


def test_a_sink_must_be_callable(lab: Path, call: Call) -> None:
    """What a sink's factory returns is checked before the first step, in one line."""
    (lab / "bad.py").write_text(f"{_REGISTER}@register.sink('dumb')\ndef dumb(): return 3\n")
    code, _, said = call("train", "runs_dir=runs", "wandb=disabled", "plugins=[bad]", "sinks=[dumb]")
    assert code == 2
    assert "sinks=dumb: it makes 3, which cannot be called with a row and its step." in said


# ---------------------------------------------------------------- trust


def test_a_checkpoints_plugins_are_imported_only_if_trusted(lab: Path, call: Call) -> None:
    """`evaluate` and `verify` name what a checkpoint needs; the flag imports it, and where it is not there says so."""
    source = (
        "from rl_research import register\nimport gymnasium\nprint('imported')\n"
        "@register.wrapper('elsewhere')\nclass E(gymnasium.Wrapper): ...\n"
    )
    (lab / "elsewhere.py").write_text(source)
    words = [*tiny(lab / "runs", "x"), "evaluation.enabled=false", "wandb=disabled"]
    run = run_all_stages(compose_experiment([*words, "plugins=[elsewhere]", "env.wrappers=[elsewhere]"]))
    del sys.modules["elsewhere"], register.wrapper.registered["elsewhere"]
    for verb in ("verify", "evaluate"):
        code, _, said = call(verb, str(run.dir))
        assert code == 2
        assert "it needs the plugins elsewhere, which would be imported." in said
        assert "--trust-plugins" in said
    assert "elsewhere" not in sys.modules
    assert call("verify", str(run.dir), "--trust-env")[0] == 0
    del sys.modules["elsewhere"], register.wrapper.registered["elsewhere"]
    (lab / "elsewhere.py").unlink()
    code, _, said = call("verify", str(run.dir), "--trust-plugins")
    assert code == 2
    assert "plugins=[elsewhere]: there is no module elsewhere" in said


def test_the_code_of_plugins_is_on_record_and_a_change_is_said(lab: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``run.json`` has the hash of each file of the user's; a run that goes on under other code says so."""
    source = "from rl_research import register\n@register.schedule('mine')\nclass M: ...\n"
    (lab / "mine.py").write_text(source)
    words = [*tiny(lab / "runs", "x"), "evaluation.enabled=false", "wandb=disabled", "plugins=[mine]"]
    run = run_all_stages(compose_experiment(words))
    assert list(record_of(run.dir)["code"]) == ["mine"]
    assert "has changed" not in caplog.text
    (lab / "mine.py").write_text(source + "# changed\n")
    run_all_stages(compose_experiment([*words, "experiment.total_timesteps=128"]))
    assert "mine has changed since this run began; it goes on with the new code" in caplog.text


# ---------------------------------------------------------------- resume


def _words(folder: Path, run_id: str, *more: str) -> list[str]:
    return [*tiny(folder, run_id, *more), "checkpoint.every=32", "experiment.total_timesteps=224", "wandb=disabled"]


@pytest.mark.slow
def test_a_killed_run_with_one_of_each_ends_with_the_same_bits(nursery: Nursery, tmp_path: Path) -> None:
    """SIGKILL, three times: extractor, policy, wrappers, callback, schedule and algorithm go on where they were."""
    assert nursery.run(_words(tmp_path, "whole", *_ONE_OF_EACH)) == 0
    words = _words(tmp_path, "killed", *_ONE_OF_EACH)
    for step in (64, 128, 192):
        segment = nursery.start(words)
        segment.wait_for_step(step)
        assert segment.kill(with_wandb=False) == -signal.SIGKILL
    assert nursery.run(words) == 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert outcome(killed) == outcome(whole)
    assert {row["resume_mode"] for row in record_of(killed)["resume"]} == {"exact"}
    for name in ("steps.txt", "exact.txt"):
        assert (killed / name).read_text() == (whole / name).read_text()
    assert verify(checkpoints.find(str(killed)), trust_env=True)["resume_mode"] == "exact"


@pytest.mark.slow
def test_a_killed_run_of_an_own_off_policy_algorithm_ends_with_the_same_bits(nursery: Nursery, tmp_path: Path) -> None:
    """Plain attributes of an algorithm that derives from SAC continue, as its replay buffer does."""
    own = (_LAB, "env=pendulum", "algorithm=sac", "algorithm.name=my_sac", "env.wrappers=[noisy_reward]")
    assert nursery.run(_words(tmp_path, "whole", *own)) == 0
    words = _words(tmp_path, "killed", *own)
    segment = nursery.start(words)
    segment.wait_for_step(100)
    assert segment.kill(with_wandb=False) == -signal.SIGKILL
    assert steps_committed(tmp_path / "killed")
    assert nursery.run(words) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_callback_without_a_state_is_told(tmp_path: Path) -> None:
    """The resume stays exact, and the manifest says which callback starts anew at it."""
    run = run_all_stages(compose_experiment(_words(tmp_path, "x", _LAB, "callbacks=[forgetful]")))
    manifest = checkpoints.find(str(run.dir)).manifest
    assert manifest.resume_mode == "exact"
    assert manifest.resume_reason == "callbacks without state() start anew: forgetful"


def test_a_callback_that_ends_training_finishes_the_run(tmp_path: Path) -> None:
    """A run that a callback has ended is finished, and starts again only for a longer budget."""
    words = _words(tmp_path, "x", _LAB, "callbacks=[{early: {at: 40}}]")
    run = run_all_stages(compose_experiment(words))
    assert run.record.is_finished
    assert run.record.global_step == 40
    record = finished_result(load_config(words))
    assert record is not None
    assert record.global_step == 40
    again = run_all_stages(compose_experiment(words))  # as after a kill between the last checkpoint and the score
    assert outcome(again.dir) == outcome(run.dir)
    assert again.record.global_step == 40
    assert finished_result(load_config([*words, "experiment.total_timesteps=300"])) is None
