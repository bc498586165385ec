"""The command line: one JSON object on stdout, one line per mistake, and a signal that is obeyed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prefect.main  # noqa: F401  # its logging keeps the stderr of its first import: not a test's
import pytest
import yaml
from helpers import environment, record_of, steps_committed, tiny, wandb_rows, wandb_summary

from rl_research.cli import command
from rl_research.config import Experiment, choices, compose_experiment, groups, load_config, settings
from rl_research.runs.run import open_run
from rl_research.training import stages

_PROGRAM = [str(Path(sys.executable).with_name("rl-research"))]
_MODULE = [sys.executable, "-m", "rl_research"]
_HEAVY = ("torch", "prefect", "stable_baselines3", "wandb", "hydra", "omegaconf", "gymnasium", "numpy")
_KEYS = {
    "run_id", "run_dir", "status", "global_step", "parameters_sha256", "checkpoint", "scores",
    "wandb", "flow_run_id", "seconds",
}  # fmt: skip


def _spawn(*words: str, cwd: Path, program: list[str] = _PROGRAM, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(
        [*program, *words], cwd=cwd, env=environment(**env), capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip


Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Iterator[Answer]:
    """Run the command in this process; its exit code, standard output and standard error.

    Prefect's loggers are as quiet as the command makes them in a process of its own.
    """
    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = command.main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    for logger in loggers:
        logger.addFilter(_nothing_at_all)  # a level would be set anew by the next flow
    yield run
    for logger in loggers:
        logger.removeFilter(_nothing_at_all)


def _nothing_at_all(_record: logging.LogRecord) -> bool:
    return False


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, made without Prefect and W&B."""
    overrides = tiny(tmp_path_factory.mktemp("trained"), "done", "wandb=disabled")
    config = load_config(overrides)
    with open_run(Experiment(config, tuple(overrides))) as run:
        stages.score_checkpoint(run, stages.train_run(run))
    return config.run_dir


# ---------------------------------------------------------------- help and configuration


@pytest.mark.parametrize("program", [_PROGRAM, _MODULE], ids=["command", "module"])
@pytest.mark.parametrize("words", [("--help",), ("--version",), ("evaluate", "--help")], ids=" ".join)
def test_help_imports_nothing_heavy(tmp_path: Path, program: list[str], words: tuple[str, ...]) -> None:
    """Help answers at once: none of the heavy libraries is imported."""
    done = _spawn(*words, cwd=tmp_path, program=program, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    assert "rl-research" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rl_research.cli" in imported
    assert not {name for name in imported if name.split(".")[0] in _HEAVY}


def test_no_verb_is_a_mistake_that_names_help(call: Answer) -> None:
    """The bare command says where to look."""
    code, out, err = call()
    assert (code, out) == (2, "")
    assert "--help" in err


def test_train_help_lists_every_group_choice_and_setting(call: Answer) -> None:
    """Everything that can be said on the command line is in its help."""
    code, out, _ = call("train", "--help")
    assert code == 0
    for group in groups():
        assert f"{group}=NAME" in out
        for choice in choices(group):
            assert choice in out
    for setting, meaning in settings().items():
        assert setting in out
        assert meaning in out
    for option in ("--json", "--cfg", "75", "130"):
        assert option in out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("experiment=cartpole_ppo", "experiment.seed=7"),
        ("algorithm=sac", "env=pendulum", "env.normalize={norm_reward: false}", "wandb=disabled"),
        ("experiment.name=ünï çödé", "wandb.tags=[a,'b c']", "algorithm.params.gamma=1e-3"),
    ],
    ids=["defaults", "experiment", "groups", "unicode"],
)
def test_cfg_prints_what_would_be_trained(call: Answer, words: tuple[str, ...]) -> None:
    """The printed YAML is the composed configuration: given back value by value it is the same experiment."""
    code, out, err = call("train", "--cfg", *words)
    assert (code, err) == (0, "")
    printed = yaml.safe_load(out)
    from rl_research.config import Config, validated

    assert validated(Config, printed) == load_config(words)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--cfg", "env=acrobot", "experiment.seed=3"),
        ("train", "env=acrobot", "--cfg", "experiment.seed=3"),
        ("train", "env=acrobot", "experiment.seed=3", "--cfg"),
        ("train", "--json", "env=acrobot", "--cfg", "experiment.seed=3"),
    ],
    ids=["first", "between", "last", "two options"],
)
def test_options_and_overrides_come_in_any_order(call: Answer, words: tuple[str, ...]) -> None:
    """An option may stand before, between and behind the overrides."""
    code, out, _ = call(*words)
    composed = yaml.safe_load(out)
    assert code == 0
    assert composed["env"]["id"] == "Acrobot-v1"
    assert composed["experiment"]["seed"] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_evaluate_takes_its_words_in_any_order(call: Answer, trained: Path) -> None:
    """The checkpoint may stand before or behind the options."""
    answers = []
    for words in [
        (str(trained), "--episodes", "2", "--json"),
        ("--json", "--episodes=2", str(trained)),
        ("--json", str(trained), "--episodes", "2"),
    ]:
        code, out, _ = call("evaluate", *words)
        assert code == 0
        answers.append(json.loads(out)["scores"])
    assert answers[0]["episodes"] == 2
    assert answers[0] == answers[1] == answers[2]


# ---------------------------------------------------------------- mistakes

_TRAIN_MISTAKES: dict[str, tuple[list[str], str]] = {
    "misspelt verb": (["trian"], "train"),
    "misspelt option": (["train", "--jsno"], "--json"),
    "abbreviated option": (["train", "--js"], "--js"),
    "option of another verb": (["train", "--episodes", "3"], "--episodes"),
    "no value": (["train", "experiment.seed"], "experiment.seed"),
    "misspelt setting": (["train", "experiment.sed=1"], "seed"),
    "misspelt section": (["train", "experimnt.seed=1"], "experiment"),
    "misspelt top level": (["train", "runid=a"], "run_id"),
    "misspelt group": (["train", "algoritm=ppo"], "algorithm"),
    "misspelt choice": (["train", "algorithm=pp"], "ppo"),
    "misspelt env choice": (["train", "env=cartpol"], "cartpole"),
    "misspelt experiment": (["train", "experiment=cartpole_pp"], "cartpole_ppo"),
    "misspelt mode": (["train", "wandb.mode=offlin"], "offline"),
    "misspelt hyperparameter": (["train", "algorithm.params.gama=0.9"], "gamma"),
    "another's hyperparameter": (["train", "algorithm.params.buffer_size=9"], "buffer_size"),
    "misspelt policy": (["train", "algorithm.policy=MlpPolice"], "MlpPolicy"),
    "text for a number": (["train", "experiment.seed=one"], "experiment.seed"),
    "negative seed": (["train", "experiment.seed=-1"], "experiment.seed"),
    "fraction of a step": (["train", "experiment.total_timesteps=1.5"], "total_timesteps"),
    "no steps": (["train", "experiment.total_timesteps=0"], "total_timesteps"),
    "no environments": (["train", "env.n_envs=0"], "n_envs"),
    "unknown environment": (["train", "env.id=CartPoule-v1"], "CartPole-v1"),
    "unknown version": (["train", "env.id=CartPole-v9"], "CartPole"),
    "unknown module": (["train", "env.id=nosuchmodule:Thing-v0"], "nosuchmodule"),
    "unknown environment argument": (["train", "env.kwargs={gravitation: 3}"], "gravitation"),
    "missing extra": (["train", "env=lunarlander"], "box2d"),
    "sac on cartpole": (["train", "algorithm=sac"], "CartPole-v1"),
    "dqn on pendulum": (["train", "algorithm=dqn", "env=pendulum"], "Pendulum-v1"),
    "batch size": (["train", "algorithm.params.batch_size=100"], "batch_size"),
    "batch beyond buffer": (
        ["train", "algorithm=sac", "env=pendulum", "algorithm.params.buffer_size=8"], "buffer_size",
    ),
    "nan learning rate": (["train", "algorithm.params.learning_rate=nan"], "learning_rate"),
    "infinite learning rate": (["train", "algorithm.params.learning_rate=inf"], "learning_rate"),
    "negative learning rate": (["train", "algorithm.params.learning_rate=-1"], "learning_rate"),
    "gamma above 1": (["train", "algorithm.params.gamma=1.5"], "gamma"),
    "bad run_id": (["train", "run_id=a/b"], "run_id"),
    "run_id upwards": (["train", "run_id=.."], "run_id"),
    "empty runs_dir": (["train", "runs_dir=''"], "runs_dir"),
    "unknown scheme": (["train", "storage.url=s4://bucket/x"], "s4"),
    "missing store client": (["train", "storage=s3", "storage.url=s3://bucket/x"], "rl-research[s3]"),
    "store without url": (["train", "storage=s3"], "storage.url"),
    "sweep": (["train", "experiment.seed=1,2"], "experiment.seed"),
    "twice the same list": (["train", "wandb.tags=[a"], "wandb.tags"),
    "hydra setting": (["train", "hydra.run.dir=x"], "hydra"),
    "another algorithm on an experiment": (
        ["train", "experiment=cartpole_ppo", "algorithm=a2c"], "experiment=cartpole_ppo",
    ),
    "evaluation on training seeds": (["train", "evaluation.seed=0"], "evaluation.seed"),
    "unknown normalizer argument": (["train", "env.normalize={norm_ob: true}"], "norm_obs"),
}  # fmt: skip


def _everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _assert_one_line(answer: tuple[int, str, str], hint: str) -> None:
    code, out, err = answer
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, f"more than one line:\n{err}"
    assert err.startswith("rl-research: ")
    assert "Traceback" not in err
    assert hint in err


@pytest.mark.parametrize("case", _TRAIN_MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_written(
    call: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """A malformed command ends with 2 and one line that leads to the right one, and leaves no file."""
    words, hint = _TRAIN_MISTAKES[case]
    if case == "missing extra":
        for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "Box2D", None)
    if case == "missing store client":
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
        monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.chdir(tmp_path)
    _assert_one_line(call(*words), hint)
    assert _everything_below(tmp_path) == []


def test_several_mistakes_are_all_said(call: Answer, tmp_path: Path) -> None:
    """Two wrong settings are two lines, so that one correction is enough."""
    code, _, err = call("train", "experiment.sed=1", "env.n_envs=0", f"runs_dir='{tmp_path}'")
    assert code == 2
    assert "sed" in err
    assert "n_envs" in err
    assert err.count("\n") == 2


def test_a_secret_option_is_not_repeated(call: Answer, tmp_path: Path) -> None:
    """What was given as an option of the store never shows up in a message."""
    _, out, err = call(
        "train", "storage.url=s4://bucket", "storage.options.secret=hunter2", "experiment.sed=1",
        f"runs_dir='{tmp_path}'",
    )  # fmt: skip
    assert "hunter2" not in out + err
    _, out, err = call("train", "storage.url=memory://x", "storage.options.secret=hunter2,b")
    assert "hunter2" not in out + err


def test_a_run_folder_below_a_file_is_refused(call: Answer, tmp_path: Path) -> None:
    """A place where no folder can be made is said before anything is trained."""
    (tmp_path / "file").write_text("mine")
    _assert_one_line(call("train", f"runs_dir='{tmp_path}/file/runs'"), "runs_dir")
    assert _everything_below(tmp_path) == ["file"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder on a read-only file system, where that can be had."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("needs root")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("below", ["", "/runs", "/a/b"])
def test_a_read_only_run_folder_is_refused(call: Answer, read_only: Path, below: str) -> None:
    """A read-only disk is one line that names the setting."""
    _assert_one_line(call("train", f"runs_dir='{read_only}{below}'"), "runs_dir")


def _copy(trained: Path, folder: Path) -> Path:
    return Path(shutil.copytree(trained, folder / "copy"))


def _no_manifest(trained: Path, folder: Path) -> list[str]:
    copy = _copy(trained, folder)
    for manifest in copy.rglob("manifest.json"):
        manifest.unlink()
    return ["evaluate", str(max((copy / "checkpoints").glob("step-*")))]


def _no_json(trained: Path, folder: Path) -> list[str]:
    newest = max((_copy(trained, folder) / "checkpoints").glob("step-*"))
    (newest / "manifest.json").write_text("{]")
    return ["evaluate", str(newest)]


def _list_for_manifest(trained: Path, folder: Path) -> list[str]:
    newest = max((_copy(trained, folder) / "checkpoints").glob("step-*"))
    (newest / "manifest.json").write_text("[1, 2]")
    return ["evaluate", str(newest)]


def _flipped_byte(trained: Path, folder: Path) -> list[str]:
    newest = max((_copy(trained, folder) / "checkpoints").glob("step-*"))
    data = bytearray((newest / "model.zip").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "model.zip").write_bytes(data)
    return ["evaluate", str(newest)]


def _truncated(trained: Path, folder: Path) -> list[str]:
    newest = max((_copy(trained, folder) / "checkpoints").glob("step-*"))
    os.truncate(newest / "model.zip", 100)
    return ["evaluate", str(newest)]


def _missing_file(trained: Path, folder: Path) -> list[str]:
    newest = max((_copy(trained, folder) / "checkpoints").glob("step-*"))
    (newest / "model.zip").unlink()
    return ["evaluate", str(newest)]


def _no_config(trained: Path, folder: Path) -> list[str]:
    newest = max((_copy(trained, folder) / "checkpoints").glob("step-*"))
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["config"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    return ["evaluate", str(newest)]


_EVALUATE_MISTAKES: dict[str, Callable[[Path, Path], list[str]]] = {
    "nothing": lambda trained, folder: ["evaluate", str(folder / "nothing")],
    "empty folder": lambda trained, folder: ["evaluate", str(folder)],
    "a file": lambda trained, folder: ["evaluate", str(trained / "config.yaml")],
    "a zip": lambda trained, folder: ["evaluate", str(trained / "best_model" / "best_model.zip")],
    "no episodes": lambda trained, folder: ["evaluate", str(trained), "--episodes", "0"],
    "worded episodes": lambda trained, folder: ["evaluate", str(trained), "--episodes", "ten"],
    "unknown scheme": lambda trained, folder: ["evaluate", "s4://bucket/run"],
    "misspelt option": lambda trained, folder: ["evaluate", str(trained), "--episode", "3"],
    "wrong override": lambda trained, folder: ["evaluate", str(trained), "storage.optins.x=1"],
    "override without effect": lambda trained, folder: ["evaluate", str(trained), "evaluation.final_episodes=7"],
    "no reference": lambda trained, folder: ["evaluate"],
    "no manifest": _no_manifest,
    "no json": _no_json,
    "list for manifest": _list_for_manifest,
    "flipped byte": _flipped_byte,
    "truncated": _truncated,
    "missing file": _missing_file,
    "no config": _no_config,
}


@pytest.mark.parametrize("case", _EVALUATE_MISTAKES)
@pytest.mark.usefixtures("prefect_api")
def test_what_cannot_be_evaluated_is_said_in_one_line(call: Answer, trained: Path, tmp_path: Path, case: str) -> None:
    """Nothing, something else, a damaged checkpoint or a senseless number: one line, exit code 2."""
    words = _EVALUATE_MISTAKES[case](trained, tmp_path)
    before = _everything_below(tmp_path)
    _assert_one_line(call(*words), "")
    assert _everything_below(tmp_path) == before


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line_of_a_real_process(trained: Path, tmp_path: Path, api: str) -> None:
    """What only the flow finds out is said once, too: nothing of Prefect's on stderr, nothing on stdout."""
    done = _spawn(*_flipped_byte(trained, tmp_path), cwd=tmp_path, PREFECT_API_URL=api)
    _assert_one_line((done.returncode, done.stdout, done.stderr), "SHA-256")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("trian", "env=cartpole"),
        ("train", "experiment.sed=1"),
        ("train", "algorithm=sac", "--json"),
        ("evaluate", "nothing/here", "--json"),
        ("train", "env.id=CartPoule-v1", "--json"),
    ],
    ids=" ".join,
)
def test_a_mistake_of_a_real_process(tmp_path: Path, words: tuple[str, ...]) -> None:
    """The same as a process: exit code 2, one line on stderr, nothing on stdout, no file."""
    done = _spawn(*words, cwd=tmp_path)
    _assert_one_line((done.returncode, done.stdout, done.stderr), "")
    assert _everything_below(tmp_path) == []


# ---------------------------------------------------------------- runs


def _json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_json_is_one_object_and_a_finished_run_is_recognised(tmp_path: Path, api: str) -> None:
    """`--json` prints the documented object alone; the same command again returns it without training."""
    words = ["train", "--json", *tiny(tmp_path / "runs", "mine")]
    first = _json(_spawn(*words, cwd=tmp_path, PREFECT_API_URL=api))
    assert first.keys() >= _KEYS
    assert (first["run_id"], first["status"], first["global_step"]) == ("mine", "finished", 96)
    assert Path(first["run_dir"]) == tmp_path / "runs" / "mine"
    assert Path(first["checkpoint"], "manifest.json").exists()
    assert len(first["parameters_sha256"]) == 64
    assert first["scores"].keys() == {"mean", "std", "episodes"}
    assert first["scores"]["episodes"] == 4
    assert first["wandb"].keys() >= {"id", "mode", "path", "dir"}
    assert (first["wandb"]["id"], first["wandb"]["mode"]) == ("mine", "offline")
    assert list(Path(first["wandb"]["dir"]).glob("run-mine.wandb"))
    assert first["flow_run_id"]
    assert first["seconds"] > 0
    segments = list((tmp_path / "runs/mine/wandb").glob("offline-run-*"))
    manifest = Path(first["checkpoint"], "manifest.json").stat().st_mtime_ns
    again = _json(_spawn(*words, cwd=tmp_path, PREFECT_API_URL=api))
    assert again == first
    assert Path(first["checkpoint"], "manifest.json").stat().st_mtime_ns == manifest
    assert list((tmp_path / "runs/mine/wandb").glob("offline-run-*")) == segments


@pytest.mark.slow
@pytest.mark.parametrize("change", ["experiment.seed=9", "algorithm.params.gamma=0.7", "env=acrobot"])
@pytest.mark.usefixtures("prefect_api")
def test_a_changed_setting_for_the_same_run_is_refused(call: Answer, trained: Path, change: str) -> None:
    """The same run_id with another seed, hyperparameter or environment: exit code 2 and the difference."""
    before = _everything_below(trained)
    words = tiny(trained.parent, "done", "wandb=disabled", change)
    answer = call("train", *words)
    _assert_one_line(answer, "run_id=done")
    assert change.split("=")[0].split(".")[0] in answer[2]
    assert "was" in answer[2]
    assert _everything_below(trained) == before


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_every_way_to_name_a_checkpoint_gives_the_final_score(
    call: Answer, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run folder, relative path, checkpoint folder, manifest, file:// URL: the final score's numbers."""
    monkeypatch.chdir(trained.parent)
    newest = max((trained / "checkpoints").glob("step-*"))
    expected = record_of(trained)["scores"]
    for reference in [
        str(trained), f"{trained}/", "done", f"{trained}/checkpoints", str(newest),
        f"{newest}/manifest.json", trained.as_uri(), newest.as_uri(),
    ]:  # fmt: skip
        code, out, err = call("evaluate", reference, "--json")
        assert code == 0, f"{reference}: {err}"
        answer = json.loads(out)
        assert answer["scores"] == expected, reference
        assert answer["global_step"] == 96
        assert answer["parameters_sha256"] == record_of(trained)["parameters_sha256"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_wandb_can_be_disabled_from_the_environment(
    call: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    """``WANDB_MODE=disabled`` writes nothing for W&B and changes no parameter."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code, out, err = call("train", "--json", *tiny(tmp_path, "done"))
    assert code == 0, err
    answer = json.loads(out)
    assert answer["wandb"]["mode"] == "disabled"
    assert answer["wandb"]["dir"] is None
    assert not (tmp_path / "done" / "wandb").exists()
    assert answer["parameters_sha256"] == record_of(trained)["parameters_sha256"]
    assert answer["scores"] == record_of(trained)["scores"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_spaces_and_unicode_are_names_like_others(call: Answer, tmp_path: Path) -> None:
    """A folder and an experiment may be named in any language, with spaces; the answer repeats them."""
    runs_dir = tmp_path / "Läufe für heute" / "试验 1"
    words = tiny(runs_dir, "mine", "experiment.name='Größe & 速度'", "storage.url='${runs_dir}/ü b'")
    code, out, err = call("train", "--json", *words)
    assert code == 0, err
    answer = json.loads(out)
    assert Path(answer["run_dir"]) == runs_dir / "mine"
    assert (runs_dir / "mine" / "report.html").exists()
    assert (runs_dir / "ü b" / "mine").is_dir()
    code, out, err = call("evaluate", answer["checkpoint"], "--json")
    assert code == 0, err
    assert json.loads(out)["scores"] == answer["scores"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_without_json_the_summary_says_where_to_look(call: Answer, tmp_path: Path) -> None:
    """A person gets the score and the places: report, run folder, how to view and sync the W&B run."""
    code, out, err = call("train", *tiny(tmp_path, "mine"))
    assert code == 0, err
    for part in ("score", "report.html", str(tmp_path / "mine"), "wandb leet run", "rl-research sync"):
        assert part in out
    assert "±" in out


_HOLDER = """
import sys
from rl_research.config import compose_experiment
from rl_research.runs import open_run
with open_run(compose_experiment(sys.argv[1:])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_second_process_is_refused_naming_the_holder(call: Answer, tmp_path: Path) -> None:
    """The second process with a run_id gets exit code 2 and the first one's number; the dead hold nothing."""
    words = tiny(tmp_path, "mine", "wandb=disabled")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        _assert_one_line(call("train", "--json", *words), f"process {holder.pid}")
    finally:
        holder.kill()
        holder.wait()
    code, out, err = call("train", "--json", *words)
    assert code == 0, err
    assert json.loads(out)["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_leaves_a_run_that_goes_on(tmp_path: Path, api: str, call: Answer, number: signal.Signals) -> None:
    """A signal: exit code 75, a checkpoint, a closed W&B segment; once more: the same bits in the end."""
    words = (
        "env.n_envs=2", "env.normalize=true", "experiment.total_timesteps=6400", "video.enabled=false",
        "experiment.log_every=256", "checkpoint.every=0", "evaluation.every=640",
    )  # fmt: skip
    whole = tiny(tmp_path / "whole", "mine", *words, "wandb=disabled")
    with open_run(compose_experiment(whole)) as run:
        stages.score_checkpoint(run, stages.train_run(run))
    overrides = tiny(tmp_path / "stopped", "mine", *words)
    process = subprocess.Popen(
        [*_PROGRAM, "train", "--json", *overrides],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=environment(PREFECT_API_URL=api), start_new_session=True,
    )  # fmt: skip
    progress = tmp_path / "stopped" / "mine" / "progress.csv"
    deadline = time.monotonic() + 120
    while not (progress.exists() and progress.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal's Ctrl-C reaches the whole foreground group
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert out == ""
    assert "Traceback" not in err
    assert f"{number.name}: stopped and committed at step" in err
    run_dir = tmp_path / "stopped" / "mine"
    (step,) = steps_committed(run_dir)
    assert 0 < step < 6400
    assert record_of(run_dir)["status"] == "interrupted"
    summary = wandb_summary(run_dir)
    assert summary["state"] in ("finished", "exited", "failed"), summary["state"]
    code, out, err = call("train", "--json", *overrides)
    assert code == 0, err
    answer, expected = json.loads(out), record_of(tmp_path / "whole" / "mine")
    assert answer["parameters_sha256"] == expected["parameters_sha256"]
    assert answer["scores"] == expected["scores"]
    steps = [row[0] for row in wandb_rows(run_dir)]
    assert len(steps) == len(set(steps))
