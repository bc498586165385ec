"""A whole machine's worth: `rl-research up`, a schedule, processes that are killed, `rl-research down`.

Slow because a server, a worker and every flow run are processes that import Prefect.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from flow_runs import ended, history, read, send, start, training, until
from helpers import environment, outcome, record_of, steps_committed
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling, Running

from rl_research.config import compose_experiment
from rl_research.errors import ConfigError
from rl_research.flows.watchdog import watchdog
from rl_research.orchestration.local_server import LocalServer, Service, running_url
from rl_research.runs.lease import holder_of
from rl_research.runs.run import open_run
from rl_research.system import living_processes
from rl_research.training import stages

_ROOT = Path(__file__).parents[1]
_WORDS = [
    "algorithm=ppo", "env=cartpole", "env.n_envs=2", "algorithm.params.n_steps=64",
    "algorithm.params.batch_size=64", "algorithm.params.policy_kwargs.net_arch=[8]",
    "checkpoint.every=512", "evaluation.enabled=false", "video.enabled=false",
]  # fmt: skip


# ---------------------------------------------------------------- one process, once


_SLEEP = ["timeit", "-n", "1", "-r", "1", "__import__('time').sleep(60)"]


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Service]:
    """A service that sleeps."""
    service = Service("sleeper", tmp_path)
    yield service
    service.stop(timeout=0)


def test_a_service_is_started_once(sleeper: Service) -> None:
    """Started twice, it is one process; stopped twice, it is gone and that is no mistake."""
    assert sleeper.start(_SLEEP, os.environ)
    first = sleeper.pid
    assert first is not None
    assert not sleeper.start(_SLEEP, os.environ)
    assert sleeper.pid == first
    assert sleeper.stop()
    assert sleeper.pid is None
    assert not sleeper.stop()


def test_a_stale_pid_file_is_nobody(sleeper: Service) -> None:
    """A pid file whose process has died is not believed, even if that number is somebody else's now."""
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        sleeper.pid_file.write_text(str(innocent.pid))
        assert sleeper.pid is None
        assert not sleeper.stop()
        sleeper.pid_file.write_text(str(innocent.pid))
        assert sleeper.start(_SLEEP, os.environ)
        assert sleeper.pid not in (None, innocent.pid)
        assert innocent.poll() is None, "the wrong process was signalled"
    finally:
        innocent.kill()
        innocent.wait()


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """A process that does not end is ended."""
    deaf = "import signal,time;signal.signal(15,signal.SIG_IGN);print(1,flush=True);time.sleep(60)"
    (tmp_path / "deaf.py").write_text(deaf)
    service = Service("deaf", tmp_path)
    service.start(["deaf"], {**os.environ, "PYTHONPATH": str(tmp_path)})
    until(lambda: "1" in service.log.read_text(), 20)
    assert service.stop(timeout=1.0)
    assert service.pid is None


def test_a_port_that_is_taken_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server cannot start, its last words are shown, and nothing is left behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(taken.getsockname()[1]))
        local = LocalServer(tmp_path)
        with pytest.raises(ConfigError, match="in use"):
            local.start_server()
    assert local.server.pid is None
    assert running_url(tmp_path) is None


@pytest.mark.parametrize("has_proc", [True, False], ids=["in /proc", "by ps"])
def test_processes_are_seen(has_proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lives is seen in /proc, with no `ps` on the PATH, and elsewhere by `ps`; a zombie does not live."""
    if has_proc:
        monkeypatch.setenv("PATH", "")
    proc = Path("/proc" if has_proc else "/nowhere")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert living_processes(proc)[child.pid] == os.getpid()
        child.kill()
        until(lambda: child.pid not in living_processes(proc), 5)


# ---------------------------------------------------------------- the machine


def _program(project: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rl_research", *words],
        cwd=project, env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    """The environment of `up` and of all it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = environment(
        PREFECT_SERVER_API_PORT=port,
        PREFECT_SERVER_UI_ENABLED="false",
        PREFECT_WORKER_QUERY_SECONDS="2",
        PREFECT_LOGGING_LEVEL="INFO",
        PYTHONPATH=os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
    )
    return {name: value for name, value in own.items() if name != "PREFECT_HOME"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's flows and its deployments, of which `nightly` is due every minute."""
    folder = tmp_path_factory.mktemp("a lab") / "project"
    folder.mkdir()
    (folder / "flows").symlink_to(_ROOT / "flows")
    raw = yaml.safe_load((_ROOT / "deployment.yaml").read_text())
    raw["deployments"] = [entry for entry in raw["deployments"] if entry["name"] in ("nightly", "every-5-minutes")]
    for entry in raw["deployments"]:
        for schedule in entry["schedules"]:
            schedule["active"] = entry["name"] == "nightly"
            schedule["cron"] = "* * * * *"
    raw["deployments"][1]["triggers"][0]["schedule_after"] = 0
    raw["deployments"][1]["entrypoint"] = "rl_research.flows.watchdog:watchdog"  # as without a checkout
    raw["deployments"][0]["parameters"]["overrides"] = [
        *_WORDS, "experiment.total_timesteps=256", "run_id=scheduled",
    ]  # fmt: skip
    (folder / "deployment.yaml").write_text(yaml.safe_dump(raw))
    return folder


@pytest.fixture(scope="module")
def up(project: Path, env: dict[str, str]) -> Iterator[LocalServer]:
    """A server and a worker, started as `make up` does, and this process as the server's client."""
    done = _program(project, "up", env=env)
    assert done.returncode == 0, done.stderr
    assert running_url(project / ".prefect-local")
    with pytest.MonkeyPatch.context() as same:
        for name in ("PREFECT_SERVER_API_PORT", "PREFECT_WORKER_QUERY_SECONDS", "PYTHONPATH"):
            same.setenv(name, env[name])
        same.setenv("PREFECT_HOME", str(project / ".prefect-local" / "home"))
        local = LocalServer(project / ".prefect-local")
        try:
            with temporary_settings({PREFECT_API_URL: local.url}):
                yield local
        finally:
            _program(project, "down", env=env)


@pytest.mark.slow
def test_a_scheduled_run_starts_by_itself(up: LocalServer, project: Path) -> None:
    """What is due is trained, scored and reported without anybody's doing, in the project's folder."""
    del up
    folder = project / "runs" / "scheduled"
    until(lambda: record_of(folder)["status"] == "finished", 150)
    assert (folder / "report.html").exists()
    done = until(lambda: ended(UUID(record_of(folder)["flow_run_id"])))
    assert done.state
    assert done.state.is_completed()
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("train/nightly")
        for schedule in nightly.schedules:  # one is enough for the tests that follow
            client.update_deployment_schedule(nightly.id, schedule.id, active=False)


@pytest.mark.slow
def test_up_twice_is_up(up: LocalServer, project: Path, env: dict[str, str]) -> None:
    """A second `up` changes neither process, and it listens on this machine alone."""
    before = (up.server.pid, up.worker.pid)
    done = _program(project, "up", env=env)
    assert done.returncode == 0, done.stderr
    assert up.url.removesuffix("/api") in done.stdout
    assert (up.server.pid, up.worker.pid) == before
    with get_client(sync_client=True) as client:
        for name, limit in (("training", 1), ("housekeeping", 1), ("watch", None)):
            queue = client.read_work_queue_by_name(name, work_pool_name="rl-local")
            assert queue.concurrency_limit == limit
        deployed = client.read_deployment_by_name("train/nightly")
    assert str(project) in str(deployed.pull_steps)


def _words(runs_dir: Path, *more: str) -> list[str]:
    return [f"runs_dir='{runs_dir}'", *_WORDS, "experiment.total_timesteps=16384", *more]


def _task_runs(flow_run_id: UUID) -> list[TaskRun]:
    of_this = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        return client.read_task_runs(flow_run_filter=of_this)


@pytest.mark.slow
def test_a_killed_flow_run_goes_on(up: LocalServer, tmp_path: Path) -> None:
    """Killed alone, then with its worker, a flow run is found, scheduled, and ends to the same bits."""
    flow_run_id = start("train/nightly", _words(tmp_path / "runs", "wandb=offline"))
    folder = until(lambda: training(tmp_path / "runs"), 150)
    assert holder_of(folder)
    step = max(steps_committed(folder))
    send(folder, "SIGKILL")  # as the system does where memory is short
    until(lambda: any(s.name == "Killed" for s in history(flow_run_id)), 150)  # by the trigger
    until(lambda: holder_of(folder) and training(tmp_path / "runs", step), 200)
    assert up.worker.pid is not None
    os.kill(up.worker.pid, signal.SIGKILL)  # the flow run would live on, so
    send(folder, "SIGKILL")  # it is killed, too, without a word
    until(lambda: not holder_of(folder))
    until(lambda: up.worker.pid is None)
    state = read(flow_run_id).state
    assert state
    assert state.is_running(), "nobody could tell Prefect"
    time.sleep(1.0)
    assert any("its process is gone" in line for line in watchdog(silence=1.0, second_look=1.0))
    up.start_worker("rl-local")
    done = until(lambda: ended(flow_run_id), 200)

    assert done.state
    assert done.state.is_completed()
    assert [s.name for s in history(flow_run_id)].count("Killed") == 2
    assert all("step " in str(s.message) for s in history(flow_run_id) if s.name == "Killed")
    states = {task_run.state_name for task_run in _task_runs(flow_run_id)}
    assert "Crashed" in states, "those of the attempts that were killed"
    assert "Running" not in states
    assert record_of(folder)["wandb"]["id"] == folder.name
    calm = _words(tmp_path / "calm", "wandb=disabled", "run_id=calm")
    with open_run(compose_experiment(calm)) as run:
        stages.train_run(run)
    assert outcome(folder) == outcome(run.dir)


@pytest.mark.slow
@pytest.mark.usefixtures("up")
def test_a_run_that_was_taken_over_is_left_to_the_other_machine(tmp_path: Path) -> None:
    """Who finds another machine's lease in the store stops, and says nothing to Prefect."""
    words = _words(
        tmp_path / "runs", "experiment.total_timesteps=400000", "wandb=disabled",
        f"storage.url='{tmp_path / 'store'}'", "storage.lease=3",
    )  # fmt: skip
    flow_run_id = start("train/nightly", words)
    folder = until(lambda: training(tmp_path / "runs"), 150)
    lease = tmp_path / "store" / folder.name / "checkpoints" / "lease.json"
    found = until(lambda: json.loads(lease.read_text()))
    lease.write_text(json.dumps({**found, "token": "theirs", "machine": "another"}))
    until(lambda: not holder_of(folder), 60)
    assert record_of(folder)["status"] == "failed"
    time.sleep(5.0)  # as long as a worker takes to report how a process ended
    with get_client(sync_client=True) as client:
        assert [s.name for s in history(flow_run_id)][-1] == "Running"
        client.set_flow_run_state(flow_run_id, Cancelled(), force=True)  # the queue has one place


@pytest.mark.slow
def test_training_outlives_the_server(up: LocalServer, tmp_path: Path) -> None:
    """A server that is killed meanwhile costs nothing; a result that it was never told is not made again."""
    flow_run_id = start("train/nightly", _words(tmp_path / "runs", "wandb=offline"))
    folder = until(lambda: training(tmp_path / "runs"), 150)
    up.server.stop(timeout=0)
    until(lambda: record_of(folder)["status"] == "finished", 200)
    up.start_server()
    done = until(lambda: ended(flow_run_id), 150)
    assert done.state
    assert done.state.is_completed()
    assert done.run_count == 1
    assert (folder / "report.html").exists()

    made = {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/model.zip")}
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Running(), force=True)  # as if nobody had come back
    time.sleep(1.0)
    assert len(watchdog(silence=1.0, second_look=1.0)) == 1
    again = until(lambda: ended(flow_run_id))
    assert again.state_name == "Completed"
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.slow
def test_down_lets_flow_runs_commit(up: LocalServer, project: Path, env: dict[str, str], tmp_path: Path) -> None:
    """The watchdog leaves alone who lives; `down` stops it at a checkpoint; the next `up` takes it up."""
    total = "experiment.total_timesteps=400000"
    flow_run_id = start("train/nightly", _words(tmp_path / "runs", total, "wandb=disabled"))
    folder = until(lambda: training(tmp_path / "runs"), 150)
    assert watchdog(silence=0.0, second_look=0.0) == [], "however long its heartbeats have been silent"
    assert holder_of(folder)

    for _ in range(2):
        done = _program(project, "down", env=env)
        assert done.returncode == 0, done.stderr
    assert record_of(folder)["status"] == "interrupted"
    assert (up.server.pid, up.worker.pid) == (None, None)
    assert running_url(up.state) is None

    up.worker.pid_file.write_text(str(os.getpid()))  # as after a power cut
    assert _program(project, "up", env=env).returncode == 0
    assert any(state.name == "Preempted" for state in history(flow_run_id))
    step = max(steps_committed(folder))
    until(lambda: training(folder.parent, step), 200)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Cancelling())
    until(lambda: not holder_of(folder))


# ---------------------------------------------------------------- a worker in the foreground


@contextmanager
def _served(project: Path, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`rl-research serve` in a session of its own, as a terminal gives it; *log* may be one."""
    words = [sys.executable, "-m", "rl_research", "serve", "--limit", "1"]
    command = ["/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1 <"$0"', str(log), *words]
    heard = (signal.SIGINT, signal.SIGHUP)  # a shell's `&` is deaf to one, `nohup` to the other
    before = {number: signal.signal(number, lambda *_: None) for number in heard}
    child = subprocess.Popen(command, cwd=project, env=env, start_new_session=True)
    for number in heard:
        signal.signal(number, before[number])
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()


@pytest.mark.slow
def test_what_is_served_commits_when_it_is_stopped(
    up: LocalServer, project: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """`serve` ends when its flow runs have committed; the next one goes on; asked twice, it ends at once.

    It needs no `ps` for that, which slim images lack; and a closed terminal, which hangs up twice, asks once.
    """
    up.worker.stop()
    (tmp_path / "pwd").symlink_to(str(shutil.which("pwd")))  # which deployment.yaml asks for
    env = {**env, "PATH": str(tmp_path)}
    log = tmp_path / "serve.log"
    words = _words(tmp_path / "runs", "experiment.total_timesteps=400000", "wandb=disabled")
    with _served(project, env, log) as served:
        flow_run_id = start("train/nightly", words)
        folder = until(lambda: training(tmp_path / "runs"), 150)
        os.killpg(served.pid, signal.SIGINT)  # to all in the foreground, as Ctrl-C does
        assert served.wait(60) == 0, log.read_text()
    assert record_of(folder)["status"] == "interrupted"
    assert not holder_of(folder)
    step = max(steps_committed(folder))
    assert [s.name for s in history(flow_run_id)][-2:] == ["Preempted", "AwaitingRetry"]

    with _served(project, env, log) as served:
        until(lambda: training(folder.parent, step), 150)
        send(folder, "SIGSTOP")  # it cannot commit
        os.kill(served.pid, signal.SIGTERM)
        until(lambda: log.read_text().count("once more to end at once") == 2, 20)
        os.kill(served.pid, signal.SIGTERM)  # within a second
        time.sleep(1.5)
        os.kill(served.pid, signal.SIGHUP)
        time.sleep(1)
        assert served.poll() is None, log.read_text()
        assert holder_of(folder)
        os.kill(served.pid, signal.SIGTERM)
        assert served.wait(20) == 130, log.read_text()
    until(lambda: not holder_of(folder), 5)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Cancelled(), force=True)  # the queue has one place


@pytest.mark.slow
def test_a_closed_terminal_lets_what_is_served_commit(
    up: LocalServer, project: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """A terminal that goes away takes no flow run with it: they commit, and are scheduled to go on."""
    up.worker.stop()
    words = _words(tmp_path / "runs", "experiment.total_timesteps=400000", "wandb=disabled")
    ours, theirs = pty.openpty()
    with _served(project, env, Path(os.ttyname(theirs))) as served:
        os.close(theirs)
        flow_run_id = start("train/nightly", words)
        folder = until(lambda: training(tmp_path / "runs"), 150)
        os.close(ours)
        assert served.wait(60) == 0
    assert record_of(folder)["status"] == "interrupted"
    assert [s.name for s in history(flow_run_id)][-2:] == ["Preempted", "AwaitingRetry"]
