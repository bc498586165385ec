"""The command's borders: its streams, its arguments, its variables and the modules that it is told to import.

Whatever comes in there, a run ends as it should or there is one line; never a traceback of ours.
"""

from __future__ import annotations

import gc
import os
import pty
import string
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers import environment, record_of, tiny
from hypothesis import HealthCheck, given, settings, strategies as st

from rl_research.cli import command
from rl_research.errors import ConfigError
from rl_research.tracking import resolve_settings

_VARIABLES = ("MODE", "DIR", "PROJECT", "ENTITY", "RUN_GROUP", "TAGS", "NAME", "NOTES", "JOB_TYPE", "RUN_ID")
_TRAIN = [sys.executable, "-m", "rl_research", "train"]
_QUIET = ("wandb.mode=disabled",)
_ENV = """
import gymnasium as gym
import numpy as np

class Chatty(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        print("a new episode " * 1000, flush=True)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t >= 20, False, {}

gym.register("Chatty-v0", "my_env:Chatty")
"""


@pytest.fixture(autouse=True, scope="module")
def _no_callback_stays() -> Iterator[None]:
    """Hypothesis leaves a callback in the garbage collector, which would swallow a later test's Ctrl-C."""
    before = [*gc.callbacks]
    yield
    gc.callbacks[:] = before


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder, with an environment of their own that prints."""
    (tmp_path / "my_env.py").write_text(_ENV)
    return tmp_path


@pytest.fixture
def shared_api(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Prefect API for the commands of several tests, none of which is about the one that a command brings."""
    monkeypatch.setenv("PREFECT_API_URL", api)


def _words(folder: Path, *overrides: str) -> list[str]:
    return tiny(folder / "runs", "x", "env.id=my_env:Chatty-v0", *_QUIET, *overrides)


def _run(folder: Path, words: list[str], after: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the words by a shell in *folder*, as the installed command would: its path does not hold the folder."""
    program = [sys.executable, "-c", "from rl_research.cli import main; raise SystemExit(main())", "train"]
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {after}', "bash", *program, *words], cwd=folder,
        env=environment(PYTHONSAFEPATH="1", **env), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def _assert_finished(folder: Path) -> None:
    assert record_of(folder / "runs" / "x")["status"] == "finished"


# ---------------------------------------------------------------- streams


@pytest.mark.usefixtures("shared_api")
@pytest.mark.slow
@pytest.mark.parametrize("after", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "--json | true", "2>&1 | true", "2>/dev/full"])
def test_a_closed_stream_ends_no_run(project: Path, after: str) -> None:
    """Closed at the start or left by its reader, whatever of stdin, stdout and stderr it is: the run finishes."""
    done = _run(project, _words(project), after)
    assert (done.returncode, "Traceback" in done.stderr, "Error" in done.stderr) == (0, False, False), done.stderr
    _assert_finished(project)


@pytest.mark.usefixtures("shared_api")
@pytest.mark.slow
def test_workers_outlive_a_closed_stream(project: Path) -> None:
    """An environment that prints in a worker process goes on when nobody reads any more."""
    done = _run(project, _words(project, "env.vec_env=subproc", "env.n_envs=2"), "2>&1 | true")
    assert done.returncode == 0
    _assert_finished(project)


@pytest.mark.usefixtures("shared_api")
@pytest.mark.slow
def test_a_dead_terminal_ends_no_run(project: Path) -> None:
    """A terminal that answers EIO, as after a lost connection under nohup, ends no run."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*_TRAIN, *_words(project)], cwd=project, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.read(ours, 1)
    os.close(ours)
    assert child.wait(120) == 0
    _assert_finished(project)


def test_an_answer_that_finds_no_room_is_a_line(project: Path) -> None:
    """A full disk under standard output is said, because the answer is what was asked for."""
    done = _run(project, [*_words(project), "--cfg"], ">/dev/full")
    assert done.returncode == 2
    assert done.stderr == "rl-research: The answer cannot be written to standard output: No space left on device.\n"


# ---------------------------------------------------------------- modules of environments


@pytest.mark.usefixtures("shared_api")
@pytest.mark.slow
def test_a_module_in_the_current_folder_is_found(project: Path) -> None:
    """``env.id=my_module:MyEnv-v0`` finds the module in the current folder, in worker processes and studies, too."""
    done = _run(project, _words(project, "env.vec_env=subproc", "env.n_envs=2"))
    assert done.returncode == 0, done.stderr
    study = [word for word in _words(project) if word != "run_id=x"]
    program = [sys.executable, "-c", "from rl_research.cli import main; raise SystemExit(main())", "study", "s"]
    done = subprocess.run(
        [*program, "--seeds", "0", *study], cwd=project, env=environment(PYTHONSAFEPATH="1"), capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_module_of_a_checkpoint_is_imported_only_if_trusted(project: Path) -> None:
    """A module in the current folder is not imported because a checkpoint from elsewhere names it."""
    from rl_research.training.evaluation import config_of

    class Elsewhere:
        address = "elsewhere"

        class manifest:  # noqa: N801  # as an attribute
            config = _config_of_chatty()

    (project / "chatty_elsewhere.py").write_text("raise SystemExit('imported')")
    with pytest.raises(ConfigError, match="--trust-env"):
        config_of(Elsewhere())  # type: ignore[arg-type]  # what is read of it


def _config_of_chatty() -> dict[str, object]:
    from rl_research.config import load_config

    return load_config(["env.id=chatty_elsewhere:Chatty-v0", "algorithm=ppo"]).model_dump(mode="json")


@pytest.mark.parametrize(
    ("source", "code", "line"),
    [
        ("open('/nonexistent/data.csv')", 2, "raised FileNotFoundError: [Errno 2] No such file or directory: '/nonex"),
        ("def f(:\n", 2, "raised SyntaxError: invalid syntax (bad_module.py, line 1)."),
        ("import sys; sys.exit(3)", 2, "raised SystemExit: 3. Look at "),
        ("import nonesuch_package", 2, "raised ModuleNotFoundError: No module named 'nonesuch_package'. Look at "),
        ("{}['key']", 1, "raised KeyError: 'key'."),
    ],
)
def test_a_module_that_fails_is_named_with_its_error(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    code: int,
    line: str,
) -> None:
    """One line names module and error; a bug of the module shows its own traceback before that, and only its own."""
    (tmp_path / "bad_module.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert command.main(["train", "env.id=bad_module:X-v0", *_QUIET]) == code
    said = capfd.readouterr().err
    assert f"rl-research: env.id=bad_module:X-v0: importing bad_module {line}" in said.splitlines()[-1] + "."
    assert said.count("Traceback") == (code == 1)
    assert "rl_research/" not in said
    assert (len(said.splitlines()) == 1) == (code == 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["env.id=no_such_module:X-v0"], "there is no module no_such_module in the current folder"),
        (["env.id=my_env:Chaty-v0"], "Did you mean 'my_env:Chatty-v0'?"),
        (["env.id=':X-v0'"], "are written my_module:MyEnv-v0"),
        (["env.id=../my_env:X-v0"], "are written my_module:MyEnv-v0"),
        (
            ["algorithm=sac", "env=pendulum", "algorithm.params.replay_buffer_class=HerReplayBuffer"],
            "there is no such replay buffer. Choose from: her",
        ),
        (["algorithm=sac", "env=pendulum", "algorithm.params.replay_buffer_class=her"], "is no goal environment"),
        (
            ["algorithm=sac", "env=pendulum", "algorithm.params.replay_buffer_kwargs.n_sampled_goal=4"],
            "Add algorithm.p",
        ),
        (["algorithm=her", "env=pendulum"], "Choose sac, td3, ddpg or dqn, with algorithm.params.replay_buffer_class="),
        (["env.kwargs.a=" + "[" * 500 + "]" * 500], "brackets are nested more than 30 deep"),
        (["experiment.seed=" + "9" * 5000], "a number has more digits than can be read"),
        (["algorithm.params.rollout_buffer_class=Mine"], "it takes a class, which no configuration can name"),
    ],
)
def test_a_slip_is_told_with_its_remedy(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    """The one line names what would be right, and where nothing would, why not."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert command.main(["train", *words, *_QUIET]) == 2
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1
    assert said in error[0]


# ---------------------------------------------------------------- variables


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true" if self.path.startswith("/api/") else b"<!doctype html>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _pages() -> Iterator[str]:
    """A server as Prefect's is: an API below /api, and a page for everything else."""
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_api_url_without_its_path_is_a_line_with_the_remedy(tmp_path: Path) -> None:
    """A Prefect server answers any path with its page, which is not taken for its API."""
    with _pages() as url:
        done = _run(tmp_path, ["env=cartpole"], PREFECT_API_URL=url)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith(f"ends in /api: PREFECT_API_URL={url}/api.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PREFECT_API_URL", "127.0.0.1:4200/api", "PREFECT_API_URL=http://127.0.0.1:4200/api."),
        ("PREFECT_API_URL", "http://127.0.0.1:port/api", "nonnumeric port"),
        ("PREFECT_HOME", "~nobody_of_this_name/x", "PREFECT_HOME=~nobody_of_this_name/x: not a folder that can be"),
        ("PREFECT_HOME", "/proc", "PREFECT_HOME=/proc: not a folder that can be written"),
        ("PREFECT_LOGGING_LEVEL", "banana", "LoggingSettings.level=BANANA: Input should be 'DEBUG', 'INFO',"),
        ("PREFECT_API_REQUEST_TIMEOUT", "abc", "APISettings.request_timeout=abc: Input should be a valid number"),
    ],
)
def test_a_wrong_variable_is_a_line(tmp_path: Path, name: str, value: str, said: str) -> None:
    """What Prefect would refuse in a hundred lines is one, which names the variable or the setting."""
    done = _run(tmp_path, ["env=cartpole"], **{name: value})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr


@pytest.mark.slow
def test_a_variable_that_wandb_refuses_is_a_line(tmp_path: Path) -> None:
    """It names W&B's setting, its value and the choices."""
    code = (
        "from rl_research.tracking import ExperimentLogger\nfrom rl_research.errors import ConfigError\n"
        "try:\n    ExperimentLogger({'wandb': {'mode': 'offline'}})\nexcept ConfigError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(WANDB_CONSOLE="banana"), capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("W&B's settings cannot be used: console='banana': Input should be 'auto', 'off',")
    assert len(done.stdout.splitlines()) == 1


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from([f"WANDB_{name}" for name in _VARIABLES]),
        st.binary(max_size=12).map(lambda data: os.fsdecode(data.replace(b"\0", b"0"))) | st.just("x" * 5000),
        min_size=1, max_size=3,
    )
)  # fmt: skip
def test_no_variables_lead_to_a_traceback(variables: dict[str, str]) -> None:
    """What a launcher may set, in any bytes, makes settings that W&B's log can hold, or printable lines."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            resolve_settings({}).wandb.model_dump_json().encode()
        except ConfigError as error:
            assert all(0 < len(line) < 1000 and line.isprintable() for line in str(error).splitlines())


@pytest.mark.slow
def test_a_run_needs_no_home_variable(project: Path) -> None:
    """Without HOME, as under some schedulers, the run finishes."""
    unset = project / "unset"
    unset.write_text("unset HOME PREFECT_HOME")
    done = _run(project, _words(project), "", BASH_ENV=str(unset))
    assert done.returncode == 0, done.stderr
    _assert_finished(project)


# ---------------------------------------------------------------- anything at all


_KEYS = [
    "env", "env.id", "env.kwargs", "env.kwargs.a", "env.n_envs", "env.normalize", "env.normalize.gamma", "algorithm",
    "algorithm.name", "algorithm.policy", "algorithm.params", "algorithm.params.n_steps", "algorithm.params.device",
    "algorithm.params.policy_kwargs", "algorithm.params.policy_kwargs.net_arch", "algorithm.params.learning_rate",
    "algorithm.params.action_noise", "algorithm.params.train_freq", "algorithm.params.replay_buffer_class",
    "algorithm.params.replay_buffer_kwargs", "algorithm.params.target_entropy", "experiment", "experiment.seed",
    "experiment.published", "experiment.total_timesteps", "wandb", "wandb.tags", "wandb.project", "storage",
    "storage.url", "storage.options", "storage.lease", "run_id", "runs_dir", "hydra.searchpath", "checkpoint.deadline",
    "env.kwargs.0", "wandb.tags.0", "resume", "a@b",
]  # fmt: skip
_TEXT = st.text(max_size=12) | st.text(string.printable, max_size=12)
_NUMBER = st.sampled_from(
    ["1e400", "-1e400", "nan", "-inf", "9" * 5000, "1_0", "0x1", "1e5000", "-0", "1" * 400 + ".0"]
)
_LEAF = (
    _TEXT | _NUMBER | st.integers().map(str) | st.floats().map(str) | st.sampled_from(["null", "true", "???", "${a}"])
)
_VALUE = st.recursive(
    _LEAF,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
        | st.dictionaries(_TEXT | _NUMBER, inner, max_size=2).map(
            lambda parts: "{" + ",".join(f"{key}: {value}" for key, value in parts.items()) + "}"
        )
        | inner.map(lambda part: f"${{{part}}}")
        | st.integers(1, 1200).map(lambda depth: "[" * depth + "]" * depth)
    ),
    max_leaves=6,
)
_WORD = st.builds(
    "{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(_KEYS) | _TEXT, _VALUE
) | _TEXT  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    words=st.lists(_WORD, min_size=1, max_size=3), verb=st.sampled_from(["train", "train", "evaluate", "checkpoints"])
)
def test_no_words_lead_to_a_traceback(words: list[str], verb: str) -> None:
    """Words of any type, depth and alphabet are an experiment or a mistake with its lines."""
    options = ["--cfg"] if verb == "train" else []
    assert command.main([verb, *options, "--", *words]) in (0, 2)
