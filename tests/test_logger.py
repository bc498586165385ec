"""ExperimentLogger, seen through the offline files it writes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from omegaconf import OmegaConf
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rl_research.config import Config
from rl_research.errors import ConfigError, LoggingError
from rl_research.tracking import provenance
from rl_research.tracking.logger import ExperimentLogger
from rl_research.tracking.settings import ENVIRONMENT, resolve_settings


@pytest.fixture(autouse=True)
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, no W&B variables, and no logger left open by a failed test."""
    for variable in (*ENVIRONMENT, "WANDB_RUN_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    while (logger := ExperimentLogger.current()) is not None:
        logger.finish()


def _leet(folder: Path | None, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True)
    return done.stdout


def _summary(logger: ExperimentLogger) -> Any:
    return json.loads(_leet(logger.wandb_dir, "--summary"))


def _records(logger: ExperimentLogger, kind: str) -> list[Any]:
    records = [json.loads(line) for line in _leet(logger.wandb_dir).splitlines()]
    return [record[kind] for record in records if record["type"] == kind]


def _rows(logger: ExperimentLogger) -> list[dict[str, Any]]:
    items = [record["item"] for record in _records(logger, "history")]
    return [{k: v for k, v in item.items() if not k.startswith("_")} for item in items]


def _script(text: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={k: v for k, v in {**os.environ, **env}.items() if k != "WANDB_SERVICE"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_run_on_disk_says_everything(launch: Path) -> None:
    """Rows, configuration, provenance and exit are in the offline run, on the axis global_step."""
    config = {"wandb": {"project": "p", "entity": "e", "tags": ["t"], "group": "g"}, "seed": 7}
    with ExperimentLogger(config, gym.make("CartPole-v1"), run_id="r1") as logger:
        assert ExperimentLogger.current() is logger
        logger.log_metrics({"eval": {"mean_reward": np.float32(1.5)}}, step=10)
        logger.log_metrics({"eval/mean_reward": 2.5, "note": "x"}, step=20)
        logger.log_metrics({})
        logger.log_config({"extra": {"lr": 0.1}})
        logger.describe_metrics({"note": "free text"})
        logger.log_summary({"score": np.int64(9)})
        assert (logger.mode, logger.path) == ("offline", "e/p/r1")
        assert str(logger.url).endswith("/e/p/runs/r1")
    assert ExperimentLogger.current() is None
    assert logger.dir == launch / "runs" / "r1"
    assert logger.wandb_dir is not None
    assert logger.wandb_dir.match("runs/r1/wandb/offline-run-*-r1")

    assert _rows(logger) == [
        {"eval/mean_reward": 1.5, "global_step": 10},
        {"eval/mean_reward": 2.5, "note": "x", "global_step": 20},
    ]
    axes = _records(logger, "metric")
    assert {"glob_name": "*", "step_metric": "global_step"}.items() <= axes[1].items()
    record = _summary(logger)
    assert (record["state"], record["exit_code"], record["tags"]) == ("finished", 0, ["t"])
    assert record["summary"]["score"] == 9
    found = record["config"]
    assert (found["seed"], found["run_id"], found["extra"]) == (7, "r1", {"lr": 0.1})
    assert found["env"]["id"] == "CartPole-v1"
    assert {"python", "wandb", "torch"} <= set(found["versions"])
    assert found["metrics"] == {"note": "free text"}
    assert "| note | free text | 20 |" in (logger.dir / "metrics.md").read_text()


def test_our_own_config_and_a_vec_env_are_taken() -> None:
    """A `Config` gives seed, environment and run folder."""
    config = Config.model_validate(
        {
            "algorithm": {"name": "ppo"},
            "env": {"id": "CartPole-v1"},
            "experiment": {"seed": 5},
            "runs_dir": "here",
            "run_id": "mine",
            "wandb": {"dir": "elsewhere"},
        }
    )
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    with ExperimentLogger(config, env) as logger:
        assert logger.dir == Path("here/mine").absolute()
        assert logger.wandb_dir is not None
        assert logger.wandb_dir.parent == Path("elsewhere/wandb").absolute()
    found = _summary(logger)["config"]
    assert found["seed"] == 5
    assert (found["env"]["n_envs"], found["env"]["id"]) == (2, "CartPole-v1")


def test_secrets_do_not_leave_the_program() -> None:
    """Keys, tokens, passwords and credentials in URLs are masked; other words stay."""
    secret = {
        "storage": {"options": {"key": "AKIA", "client_secret": "s3cr3t", "clientKwargs": {"apiKey": "k"}}},
        "url": "https://me:s3cr3t@host/x?sig=s3cr3t&part=1",
        "monkey": 1,
        "max_tokens": 5,
    }
    with ExperimentLogger({**secret, "wandb": {}}) as logger:
        logger.log_config({"again": secret, "db_password": "s3cr3t"})
    assert b"s3cr3t" not in next(Path(str(logger.wandb_dir)).glob("*.wandb")).read_bytes()
    found = _summary(logger)["config"]
    assert found["storage"]["options"] == {"key": "***", "client_secret": "***", "clientKwargs": {"apiKey": "***"}}
    assert found["url"] == "https://***@host/x?sig=***&part=1"
    assert (found["monkey"], found["max_tokens"]) == (1, 5)


def test_two_open_runs_are_independent() -> None:
    """Runs open at the same time share nothing; the later one is the current one."""
    one, two = (ExperimentLogger({}, run_id=name) for name in ("one", "two"))
    one.log_metrics({"a": 1}, step=5)
    two.log_metrics({"a/b": 2}, step=1)
    assert ExperimentLogger.current() is two
    two.finish()
    assert ExperimentLogger.current() is one
    one.finish()
    assert _rows(one) == [{"a": 1, "global_step": 5}]
    assert _rows(two) == [{"a/b": 2, "global_step": 1}]


def test_a_run_id_is_open_once_and_continues_later() -> None:
    """The id of an open run is refused; after finish it makes another segment of the same run."""
    first = ExperimentLogger({}, run_id="same")
    with pytest.raises(ConfigError, match="run_id=same is being logged already"):
        ExperimentLogger({}, run_id="same")
    first.log_metrics({"a": 1}, step=1)
    first.finish()
    with ExperimentLogger({}, run_id="same") as second:
        second.log_metrics({"a": 2}, step=2)
    assert first.wandb_dir != second.wandb_dir
    assert (_rows(first)[0]["a"], _rows(second)[0]["a"]) == (1, 2)


def test_after_finish_logging_is_one_clear_error() -> None:
    """Finishing twice is fine; every way of logging afterwards raises."""
    logger = ExperimentLogger({"wandb": {"mode": "disabled"}})
    logger.finish()
    logger.finish()
    for log in (
        lambda: logger.log_metrics({"a": 1}),
        lambda: logger.log_config({}),
        lambda: logger.log_summary({}),
        lambda: logger.log_image("x", np.zeros((4, 4))),
        lambda: logger.log_video("x", np.zeros((4, 4, 4))),
        lambda: logger.describe_metrics({}),
        lambda: logger.save_model(None),
        lambda: logger.log_checkpoint("x", "s3://b", {}, {}),
    ):
        with pytest.raises(LoggingError, match="finished"):
            log()


def test_an_exception_fails_the_run() -> None:
    """Leaving the block by an exception finishes the run with exit code 1."""
    with pytest.raises(RuntimeError), ExperimentLogger({}) as logger:
        raise RuntimeError
    assert _summary(logger)["exit_code"] == 1


def test_rows_beyond_the_bound_are_averaged_and_flushed() -> None:
    """Thinned rows carry means and the block's last step, and the rest arrives at finish."""
    with ExperimentLogger({"wandb": {"max_rows": 3}}) as logger:
        for i in range(17):
            logger.log_metrics({"x": i}, step=i)
    expected = [(0, 0), (1, 1), (2, 2), (7.5, 12), (14.5, 16)]
    assert [(row["x"], row["global_step"]) for row in _rows(logger)] == expected


def test_rows_from_threads_all_arrive() -> None:
    """Four threads lose and garble nothing."""
    with ExperimentLogger({}) as logger:

        def work(k: int) -> None:
            for i in range(50):
                logger.log_metrics({f"t{k}/x": i}, step=i)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = _rows(logger)
    for k in range(4):
        assert [row[f"t{k}/x"] for row in rows if f"t{k}/x" in row] == list(range(50))


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise RuntimeError", 1)])
def test_a_program_that_forgets_finish_loses_nothing(end: str, code: int, launch: Path) -> None:
    """Rows pending in a block, and how it ended, reach the disk when the program exits."""
    done = _script(
        f"""
        from rl_research.utils.logger import ExperimentLogger
        logger = ExperimentLogger({{"wandb": {{"max_rows": 1}}}}, run_id="r")
        for i in range(5):
            logger.log_metrics({{"x": i}}, step=i)
        {end}
        """,
        launch,
    )
    assert (done.returncode, done.stdout) == (code, "")
    folder = next(launch.glob("runs/r/wandb/offline-run-*"))
    summary = json.loads(_leet(folder, "--summary"))
    assert summary["summary"]["x"] == 2.5
    assert summary["exit_code"] == code


@pytest.mark.parametrize("home", [None, "/proc/none"])
def test_without_a_home_the_terminal_stays_quiet(home: str | None, launch: Path) -> None:
    """W&B's service, which has no cache to write its log to, writes it in the run's W&B folder."""
    script = "from rl_research.utils.logger import ExperimentLogger as L\nL({'wandb': {}}).finish()"
    env = {name: text for name, text in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "WANDB_CACHE_DIR")}
    env |= {} if home is None else {"HOME": home}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=launch, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_not_a_number_is_logged_and_mentioned_once(caplog: pytest.LogCaptureFixture) -> None:
    """NaN is a value, and a warning per metric."""
    with caplog.at_level(logging.WARNING), ExperimentLogger({}) as logger:
        logger.log_metrics({"loss": float("nan")}, step=0)
        logger.log_metrics({"loss": float("inf")}, step=1)
    assert caplog.text.count("'loss' is") == 1
    assert [row["loss"] for row in _rows(logger)] == ["NaN", "Infinity"]


def test_media_are_in_the_run() -> None:
    """Images and films land in the run's files, at the step of the row before them."""
    with ExperimentLogger({}) as logger:
        logger.log_metrics({"x": 1}, step=100)
        logger.log_image("eval/state", np.ones((3, 8, 8)), caption="here")
        logger.log_video("eval/episode", np.zeros((3, 7, 9, 3), np.uint8), fps=5)
        logger.log_video("film", logger.dir / "videos" / "eval" / "episode-100.mp4", step=200)
        with pytest.raises(LoggingError, match="'eval/state' names a image"):
            logger.log_metrics({"eval/state": 1})
        with pytest.raises(LoggingError, match="no file"):
            logger.log_video("film", "nowhere.mp4")
    rows = _rows(logger)
    assert [row["global_step"] for row in rows] == [100, 100, 100, 200]
    assert rows[1]["eval/state.height"] == 8
    media = sorted(p.suffix for p in Path(str(logger.wandb_dir)).rglob("files/media/**/*.*"))
    assert media == [".mp4", ".mp4", ".png"]


def test_a_model_is_saved_whole_and_logged_as_an_artifact(launch: Path) -> None:
    """The zip and VecNormalize's statistics are on disk, and an artifact says what they are."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    with ExperimentLogger({}, run_id="r") as logger:
        path = logger.save_model(model, "best_model", {"reward": 1.0, "note": "x"}, ["best"])
        again = logger.save_model(model, "best_model")
    assert path == logger.dir / "models" / "best_model-0" / "model.zip"
    assert again == logger.dir / "models" / "best_model-0-2" / "model.zip"
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.zip", "vecnormalize.pkl"]
    assert zipfile.is_zipfile(path)
    PPO.load(path, device="cpu")

    artifact = _records(logger, "artifact")[0]
    assert (artifact["name"], artifact["type"]) == ("best_model", "model")
    assert set(artifact["aliases"]) == {"latest", "step-0", "best"}
    metadata = json.loads(artifact["metadata"])
    assert metadata["reward"] == 1.0
    assert (metadata["global_step"], metadata["run_id"], metadata["algorithm"]) == (0, "r", "PPO")
    assert set(metadata["sha256"]) == {"model.zip", "vecnormalize.pkl"}
    local = [Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]]
    assert all(p.parent == path.parent for p in local)
    assert not [p for p in (launch / "data").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a/b"}, "For instance 'a_b'"),
        ({"name": ""}, "cannot name a model"),
        ({"aliases": "best"}, "must be a list"),
        ({"aliases": ["a:b"]}, "without '/' and ':'"),
        ({"metadata": {str(i): i for i in range(101)}}, "keys"),
        ({}, "Stable-Baselines3 algorithm"),
    ],
)
def test_what_cannot_be_saved_is_refused(arguments: dict[str, Any], message: str) -> None:
    """Bad names, aliases, metadata and models raise before anything is written."""
    with ExperimentLogger({"wandb": {"mode": "disabled"}}) as logger:
        with pytest.raises(LoggingError, match=message):
            logger.save_model(object(), **arguments)
        assert not logger.dir.exists()


@pytest.mark.parametrize(
    ("uri", "ref"),
    [
        ("s3://bucket/run/step_5/", "s3://bucket/run/step_5/model.zip"),
        ("gs://bucket/x", "gs://bucket/x/model.zip"),
        ("memory://x", "memory://x/model.zip"),
        ("/abs/x y", "file:///abs/x%20y/model.zip"),
    ],
)
def test_a_checkpoint_is_logged_by_reference(uri: str, ref: str) -> None:
    """Any scheme works offline, without its SDK; digest and size are those given."""
    with ExperimentLogger({}) as logger:
        logger.log_checkpoint("ppo", uri, {"model.zip": (12, "ab" * 32)}, {"step": 5}, ["best"])
    artifact = _records(logger, "artifact")[0]
    entry = artifact["manifest"]["contents"][0]
    assert (entry["ref"], entry["size"], entry["digest"]) == (ref, "12", "sha256:" + "ab" * 32)
    assert (set(artifact["aliases"]), artifact["type"]) == ({"latest", "best"}, "model")
    assert json.loads(artifact["metadata"]) == {"step": 5, "uri": uri}


def test_disabled_logs_nothing_and_still_saves(launch: Path) -> None:
    """Without W&B inputs are checked and files are written, and wandb is not even imported."""
    done = _script(
        """
        import sys
        import numpy as np
        from rl_research.utils.logger import ExperimentLogger
        with ExperimentLogger({}, run_id="r") as logger:
            logger.log_metrics({"a": 1})
            logger.log_image("i", np.zeros((4, 4)))
            logger.log_video("v", np.zeros((2, 8, 8)))
            logger.log_config({"a": 1})
            logger.log_summary({"a": 1})
            logger.log_checkpoint("c", "s3://b/x", {}, {})
            assert logger.mode == "disabled"
            assert logger.path is logger.url is logger.run is None
        assert "wandb" not in sys.modules and "prefect" not in sys.modules
        """,
        launch,
        WANDB_MODE="disabled",
    )
    assert (done.returncode, done.stderr) == (0, "")
    files = {str(p.relative_to(launch / "runs/r")) for p in (launch / "runs").rglob("*.*")}
    assert files == {"metrics.md", "videos/v-0.mp4"}


def test_the_environment_wins_over_the_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who launches decides: every variable replaces its setting; an explicit id is kept."""
    values = {
        "WANDB_MODE": "dryrun", "WANDB_DIR": "d", "WANDB_PROJECT": "p", "WANDB_ENTITY": "e",
        "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "a, b,", "WANDB_NAME": "n", "WANDB_NOTES": "x",
        "WANDB_JOB_TYPE": "eval", "WANDB_RUN_ID": "from-env",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    section = {"mode": "online", "dir": "other", "project": "other", "tags": ["other"]}
    settings = resolve_settings({"wandb": section})
    found = settings.wandb
    assert (found.mode, found.project, found.tags) == ("offline", "p", ("a", "b"))
    assert (found.entity, found.group, found.name, found.notes) == ("e", "g", "n", "x")
    assert (found.job_type, settings.root, settings.run_id) == ("eval", Path("d").absolute(), "from-env")
    assert resolve_settings({"run_id": "configured"}).run_id == "configured"
    assert resolve_settings({"run_id": "configured"}, run_id="given").run_id == "given"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "needs a configuration"),
        ({"wandb": "offline"}, "should be a mapping"),
        ({"wandb": {"mode": "ofline"}}, "wandb.mode=ofline: should be .*offline"),
        ({"wandb": {"taggs": []}}, r"'wandb.taggs' is not a setting. Did you mean 'wandb.tags'\?"),
        ({"wandb": {"max_rows": 0}}, "wandb.max_rows=0"),
        ({"wandb": {"project": "a/b"}}, "wandb.project=a/b"),
        ({"run_id": "a b"}, "run_id=a b: use"),
        ({"wandb": {"dir": "/proc/nowhere"}}, "wandb.dir=/proc/nowhere: cannot write there"),
    ],
)
def test_a_bad_section_is_one_clear_line(config: Any, message: str) -> None:
    """The message names setting, value, reason and remedy, and no logger stays open."""
    with pytest.raises(ConfigError, match=message) as error:
        ExperimentLogger(config)
    assert "\n" not in str(error.value)
    assert ExperimentLogger.current() is None


def test_an_unsupported_mode_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """WANDB_MODE=shared is not a mode in which one process writes one run."""
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(ConfigError, match="WANDB_MODE=shared"):
        ExperimentLogger({})


@pytest.mark.parametrize("own_dir", [None, "mine"])
def test_hydras_output_dir_in_a_plain_script(own_dir: str | None, launch: Path) -> None:
    """Outside of Hydra, ``${hydra:runtime.output_dir}`` means the run's folder."""
    config = OmegaConf.create({"wandb": {"dir": "${hydra:runtime.output_dir}"}})
    for given in (config, OmegaConf.to_container(config)):
        settings = resolve_settings(given, "r", own_dir)
        assert settings.root == settings.dir == launch / (own_dir or "runs/r")


def test_hydras_output_dir_under_hydra_main(launch: Path) -> None:
    """Under the user's own ``@hydra.main`` it is Hydra's folder, as the guide writes it."""
    done = _script(
        """
        import hydra
        from omegaconf import OmegaConf
        from rl_research.utils.logger import ExperimentLogger

        @hydra.main(version_base=None, config_path=".", config_name="guide")
        def main(cfg):
            with ExperimentLogger(cfg, None) as logger:
                logger.log_metrics({"x": 1})

        open("guide.yaml", "w").write(
            "wandb:\\n  project: my_project\\n  tags: [training, ppo]\\n  mode: online\\n"
            "  dir: ${hydra:runtime.output_dir}\\n"
        )
        main()
        """,
        launch,
        WANDB_MODE="offline",
    )
    assert done.returncode == 0, done.stderr
    assert len(list(launch.glob("outputs/*/*/wandb/offline-run-*"))) == 1


@pytest.mark.slow
def test_a_flow_run_is_linked_and_gives_the_id(launch: Path) -> None:
    """In a flow the id comes from the flow run, and the W&B run says which one it was."""
    done = _script(
        """
        from prefect.context import FlowRunContext
        from types import SimpleNamespace
        from uuid import UUID
        from rl_research.tracking import provenance
        from rl_research.utils.logger import ExperimentLogger
        run = SimpleNamespace(id=UUID(int=0xABCDEF0123456789), name="calm-fox", deployment_id=None)
        FlowRunContext.get = classmethod(lambda cls: SimpleNamespace(flow_run=run))
        with ExperimentLogger({}) as logger:
            logger.log_metrics({"x": 1})
        assert logger.run_id == "ef0123456789", logger.run_id
        """,
        launch,
    )
    assert done.returncode == 0, done.stderr
    folder = next(launch.glob("runs/ef0123456789/wandb/offline-run-*"))
    found = json.loads(_leet(folder, "--summary"))
    assert found["config"]["prefect"]["flow_run_name"] == "calm-fox"
    assert found["config"]["prefect"]["flow_run_id"].endswith("abcd-ef0123456789")
    assert found["tags"] == ["prefect"]


class _HalfServer(BaseHTTPRequestHandler):
    """Knows the viewer, and answers 500 to everything else."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        knows = b"query Viewer { viewer { id entity } }" in body
        self.send_response(200 if knows else 500)
        self.end_headers()
        self.wfile.write(b'{"data": {"viewer": {"id": "1", "entity": "e"}}}' if knows else b"{}")

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""


_ONLINE = """
    import logging, time
    logging.basicConfig(level="WARNING", format="%(name)s|%(message)s")
    from rl_research.utils.logger import ExperimentLogger
    with ExperimentLogger({"wandb": {"mode": "online", "init_timeout": 2}}, run_id="r") as logger:
        logger.log_metrics({"x": 1}, step=3)
        assert logger.mode == "offline" and logger.run_id == "r", logger.mode
"""


@pytest.mark.slow
@pytest.mark.parametrize("server", ["refused", "half", "no key"])
def test_an_online_run_without_a_server_goes_on_offline(server: str, launch: Path) -> None:
    """Within the bound the run continues offline, with its rows and one warning."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _HalfServer) as half:
        env = {
            "WANDB_BASE_URL": f"http://127.0.0.1:{half.server_port}",
            "NETRC": str(launch / "netrc"),
            "WANDB_API_KEY": "" if server == "no key" else "x" * 40,
        }
        if server == "half":
            threading.Thread(target=half.serve_forever, daemon=True).start()
            done = _script(_ONLINE, launch, **env)
            half.shutdown()  # a closed socket alone would keep its thread busy until the session ends
    if server != "half":
        done = _script(_ONLINE, launch, **env)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "rl_research" in line]
    assert len(warnings) == 1
    assert "rl-research sync" in warnings[0]
    folder = next(launch.glob("runs/r/wandb/offline-run-*"))
    assert json.loads(_leet(folder, "--summary"))["summary"]["x"] == 1


def test_callbacks_log_what_sb3_records() -> None:
    """model.learn with the logger's callbacks leaves SB3's metrics at their steps."""
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, device="cpu", seed=0)
    with ExperimentLogger({}) as logger:
        model.learn(192, callback=logger.get_callbacks())
    rows = [row for row in _rows(logger) if "rollout/ep_rew_mean" in row]
    assert [row["global_step"] for row in rows] == [64, 128, 192]


def test_importing_the_logger_is_cheap() -> None:
    """The import brings none of the heavy libraries."""
    heavy = ["torch", "wandb", "prefect", "stable_baselines3", "moviepy", "matplotlib", "hydra"]
    code = f"import sys, rl_research.tracking.logger; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_provenance_never_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Environments without a spec, folders without a repository and odd objects are described."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state() == {}
    assert provenance.environment_facts(None) == {}
    assert provenance.environment_facts(object()) == {"n_envs": 1}
    assert provenance.package_versions()["python"].startswith("3.")
    odd = {"f": len, "c": Path, "p": Path("a/b"), "o": object(), "s": {2, 1}, 3: np.float32(0.5)}
    assert provenance.public(odd) == {
        "f": "builtins.len", "c": "pathlib.Path", "p": "a/b", "o": "builtins.object",
        "s": [1, 2], "3": 0.5,
    }  # fmt: skip


def test_the_git_commit_is_found(tmp_path: Path) -> None:
    """In a repository the commit is known, and whether files differ from it."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", *who, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "x")
    provenance._git.cache_clear()
    assert provenance.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    provenance._git.cache_clear()
    assert provenance.git_state()["dirty"] is True
