"""Preemption with a real server and real signals: who goes on by itself, who stays stopped, who gave up.

Slow because each flow run is a process that imports Prefect and torch, and some are started several times.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flow_runs import ended, history, read, send, start, training, until
from helpers import environment, outcome, record_of, steps_committed
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import AwaitingRetry, Cancelling, Crashed, Pending, Running

from rl_research.config import Config, Experiment, load_config
from rl_research.flows.train import train
from rl_research.flows.watchdog import watchdog
from rl_research.orchestration import recovery
from rl_research.runs.run import open_run
from rl_research.training import stages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("api")]

_SIGNALS = ("SIGTERM", "SIGUSR1")
_STEPS = 8192
_FAULTY = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class Faulty(CartPoleEnv):
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps > 100:
            raise RuntimeError("the motor is broken")
        return super().step(action)


gym.register("Faulty-v0", entry_point=Faulty, max_episode_steps=500)
"""
_SERVE = """
import faulty

from rl_research.orchestration import reschedule_if_preempted
from rl_research.flows.train import train


def soon(flow, flow_run, state):
    reschedule_if_preempted(flow, flow_run, state, first_delay=0.1)


if __name__ == "__main__":
    train.with_options(retries=1, on_crashed=[soon]).serve(name="served", pause_on_shutdown=False)
"""


def _words(runs_dir: Path, *more: str) -> list[str]:
    return [
        f"runs_dir='{runs_dir}'",
        "algorithm=ppo",
        "env=cartpole",
        "env.n_envs=2",
        "algorithm.params.n_steps=64",
        "algorithm.params.batch_size=64",
        "algorithm.params.policy_kwargs.net_arch=[8]",
        f"experiment.total_timesteps={_STEPS}",
        "checkpoint.every=512",
        "evaluation.enabled=false",
        "video.enabled=false",
        *more,
    ]


@contextmanager
def _process(command: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env=env, text=True)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the server and of all that talks to it."""
    home = tmp_path_factory.mktemp("prefect")
    (home / "faulty.py").write_text(_FAULTY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return environment(
        PREFECT_HOME=str(home),
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_SERVER_UI_ENABLED="false",
        PREFECT_RUNNER_POLL_FREQUENCY="1",
        PREFECT_LOGGING_LEVEL="INFO",
        PYTHONPATH=os.pathsep.join([str(home), str(Path(__file__).parents[1])]),
    )


@pytest.fixture(scope="module")
def api(env: dict[str, str]) -> Iterator[None]:
    """A server of this module's own, and this process as its client."""
    url = env["PREFECT_API_URL"]
    port = url.rpartition(":")[2].removesuffix("/api")
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", port]
    log = Path(env["PREFECT_HOME"], "server.log")
    with _process([*command, "--host", "127.0.0.1"], log, env):
        until(lambda: httpx.get(f"{url}/health").is_success, 180)
        with temporary_settings({PREFECT_API_URL: url}):
            yield


@pytest.fixture(scope="module")
def served(api: None, env: dict[str, str]) -> Iterator[Path]:
    """`train` with one retry, served by a process; its log."""
    del api  # it has to run first
    home = Path(env["PREFECT_HOME"])
    (home / "serve.py").write_text(_SERVE)
    with _process([sys.executable, str(home / "serve.py")], home / "serve.log", env):
        until(lambda: "is being served" in (home / "serve.log").read_text())
        yield home / "serve.log"


@pytest.mark.usefixtures("served")
def test_a_preempted_flow_run_goes_on_by_itself(tmp_path: Path) -> None:
    """Stopped by each of the signals in turn, one flow run ends to the same bits, its retry unused."""
    flow_run_id = start("train/served", _words(tmp_path / "runs", "wandb=offline"))
    step = 0
    for times, name in enumerate(_SIGNALS, 1):
        folder = until(lambda after=step: training(tmp_path / "runs", after))
        send(folder, name)
        until(lambda n=times: sum(s.name == "Preempted" for s in history(flow_run_id)) >= n)
        step = record_of(folder)["global_step"]
    done = until(lambda: ended(flow_run_id))

    assert done.state
    assert done.state.is_completed()
    assert done.run_count == 1 + len(_SIGNALS)
    assert done.empirical_policy.retries == 1 + len(_SIGNALS)  # so one is left for a real fault
    stops = [state for state in history(flow_run_id) if state.name == "Preempted"]
    assert all(state.is_crashed() for state in stops)
    assert [name in str(state.message) for name, state in zip(_SIGNALS, stops, strict=True)]
    assert record_of(folder)["flow_run_id"] == str(flow_run_id)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1 + len(_SIGNALS)
    config = load_config(_words(tmp_path / "calm", "wandb=disabled", "run_id=calm"))
    with open_run(Experiment(config)) as calm:
        stages.train_run(calm)
    assert outcome(folder) == outcome(calm.dir)


def test_a_cancelled_flow_run_is_committed_and_stays_cancelled(
    served: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """`prefect flow-run cancel` ends in a checkpoint and in `Cancelled`, and nothing is scheduled again."""
    total = "experiment.total_timesteps=400000"
    flow_run_id = start("train/served", _words(tmp_path / "runs", total, "wandb=disabled"))
    folder = until(lambda: training(tmp_path / "runs"))
    cancel = [sys.executable, "-m", "prefect", "flow-run", "cancel", str(flow_run_id)]
    subprocess.run(cancel, env=env, check=True, capture_output=True, timeout=90)
    until(lambda: ended(flow_run_id))
    said = "Cancelled flow run"
    until(lambda: said in served.read_text())

    record = record_of(folder)
    assert (record["status"], record["global_step"]) == ("interrupted", steps_committed(folder)[-1])
    kinds = [state.name for state in history(flow_run_id)]
    assert kinds[-1] == "Cancelled"
    assert "AwaitingRetry" not in kinds
    assert read(flow_run_id).run_count == 1


@pytest.mark.usefixtures("served")
def test_what_the_user_has_to_mend_is_failed(tmp_path: Path) -> None:
    """A bug in the environment and a misspelt setting are `Failed`, with the reason, not `Preempted`."""
    bug = start("train/served", _words(tmp_path / "bug", "env.id=Faulty-v0", "wandb=disabled"))
    typo = start("train/served", _words(tmp_path / "typo", "experiment.sed=1"))
    for flow_run_id, reason in ((bug, "the motor is broken"), (typo, "'experiment.sed'")):
        state = until(lambda of=flow_run_id: ended(of)).state
        assert state
        assert state.is_failed()
        assert reason in str(state.message)
        names = [state.name for state in history(flow_run_id)]
        assert "Preempted" not in names
        assert names.count("AwaitingRetry") <= 1  # the flow's own retry


# ---------------------------------------------------------------- the hook, against the real API


@pytest.fixture
def flow_run() -> FlowRun:
    """A flow run of a deployment that nobody serves."""
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("train")
        made = client.create_deployment(flow_id=flow_id, name="unserved")
        return client.create_flow_run_from_deployment(made)


def _crash(flow_run: FlowRun, step: int, name: str = "Preempted") -> State[Any]:
    """Let *flow_run* be stopped at *step*, and run the hook; its state then."""
    state = Crashed(name=name, message=f"step {step}: SIGTERM: stopped")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, Running(), force=True)
        client.set_flow_run_state(flow_run.id, state, force=True)
    recovery.reschedule_if_preempted(train, flow_run, state)
    found = read(flow_run.id).state
    assert found
    return found


def _seconds_to_wait(state: State[Any]) -> float:
    scheduled = state.state_details.scheduled_time
    assert scheduled
    return (scheduled - state.timestamp).total_seconds()


def test_a_flow_run_that_does_not_get_on_is_given_up(flow_run: FlowRun) -> None:
    """Each stop at the same step doubles the wait, progress resets it, the fifth in a row is the last."""
    waits = [_seconds_to_wait(_crash(flow_run, step)) for step in (64, 64, 128, 128, 128, 128)]
    assert waits == pytest.approx([10, 20, 10, 20, 40, 80], abs=5)
    given_up = _crash(flow_run, 128)
    assert given_up.is_failed()
    assert "stopped 5 times without getting on; step 128: SIGTERM" in str(given_up.message)
    assert f"prefect flow-run retry {flow_run.id}" in str(given_up.message)
    assert _seconds_to_wait(_crash(flow_run, 128)) == pytest.approx(10, abs=5), "it counts anew"


def test_what_never_ran_is_granted_no_retry(flow_run: FlowRun) -> None:
    """Killed as it starts, a flow run gets another start, and no retry of what the user has to mend."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, Pending(), force=True)
        client.set_flow_run_state(flow_run.id, recovery.killed_state(0, "no sign of life"), force=True)
        assert recovery.schedule_again(client, flow_run.id)
    assert read(flow_run.id).empirical_policy.retries in (None, 0)
    _crash(flow_run, 64)
    assert read(flow_run.id).empirical_policy.retries == 1


def test_a_crash_of_another_kind_is_not_scheduled_again(flow_run: FlowRun) -> None:
    """What a bug, a kill or a second signal has ended stays `Crashed`."""
    assert _crash(flow_run, 64, name="Crashed").name == "Crashed"


def test_a_flow_run_being_cancelled_is_not_scheduled_again(flow_run: FlowRun) -> None:
    """`Preempted` on the way from `Cancelling` to `Cancelled` changes nothing about it."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, Cancelling(), force=True)
    assert _crash(flow_run, 64).name == "Preempted"
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, AwaitingRetry(), force=True)
    assert _crash(flow_run, 64).name == "AwaitingRetry", "started again by hand, it counts again"


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_an_unreachable_api_costs_seconds_and_a_line(
    flow_run: FlowRun, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """An API that refuses or never answers neither hangs the hook nor raises from it."""
    state = Crashed(name="Preempted", message="step 64: SIGTERM")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":
            listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        settings = {PREFECT_API_URL: url, PREFECT_LOGGING_TO_API_ENABLED: False}
        logging.getLogger("prefect.flow_runs").addHandler(caplog.handler)
        try:
            with temporary_settings(settings):
                since = time.monotonic()
                recovery.reschedule_if_preempted(train, flow_run, state)
        finally:
            logging.getLogger("prefect.flow_runs").removeHandler(caplog.handler)
    assert time.monotonic() - since < 30
    assert f"prefect flow-run retry {flow_run.id}" in caplog.text


# ---------------------------------------------------------------- two machines


_ELSEWHERE = """
import sys, time
from rl_research.storage import lease as store_lease
from rl_research.storage.store import Store

store_lease.machine_id = lambda: "another"
lease = store_lease.RunLease(lambda: Store(sys.argv[1]), "mine", 1.0)
lease.acquire()
print("held", flush=True)
time.sleep(60)
"""


def _no_answer(config: Config) -> None:
    raise TimeoutError(f"{config.storage.url} does not answer")


def test_a_machine_that_cannot_reach_prefect_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Silent to Prefect, a flow run whose lease is renewed in its store is left alone, and taken up after.

    So is one whose store does not answer now; which of the two it is, is said.
    """
    words = _words(tmp_path, "run_id=mine", f"storage.url='{tmp_path / 'store'}'", "storage.lease=1")
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("train")
        made = client.create_deployment(flow_id=flow_id, name="elsewhere", tags=["rl_research"])
        run = client.create_flow_run_from_deployment(made, parameters={"overrides": words}, tags=["rl_research"])
        client.set_flow_run_state(run.id, Running(), force=True)
    store = tmp_path / "store" / "mine" / "checkpoints"
    command = [sys.executable, "-c", _ELSEWHERE, str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"held\n"
            assert watchdog(silence=0.0, second_look=1.0) == []
            assert "is renewed: it lives" in caplog.text
        finally:
            holder.kill()
    caplog.clear()
    with monkeypatch.context() as away:
        away.setattr("rl_research.orchestration.watchdog.stored_lease", _no_answer)
        assert watchdog(silence=0.0, second_look=1.0) == []
    assert "cannot be asked; looked at again in the next round" in caplog.text
    assert "it lives" not in caplog.text
    assert ["its process is gone" in line for line in watchdog(silence=0.0, second_look=1.0)] == [True]
    assert [state.name for state in history(run.id)][-2:] == ["Killed", "AwaitingRetry"]


# ---------------------------------------------------------------- without a deployment


@pytest.mark.parametrize(("stage", "name"), [("start", "SIGTERM"), ("train", "SIGINT"), ("score", "SIGTERM")])
def test_a_direct_run_stops_with_a_code(env: dict[str, str], tmp_path: Path, stage: str, name: str) -> None:
    """A direct run that is stopped ends in time and whole: with 75, or 143 while it starts."""
    more = ["wandb=disabled", "experiment.total_timesteps=400000"]
    if stage == "score":
        more += ["evaluation.enabled=true", "evaluation.every=0"]
        more += ["experiment.total_timesteps=512", "evaluation.final_episodes=100000"]
    folder = tmp_path / "runs" / stage
    began: dict[str, Callable[[], object]] = {
        "start": lambda: _named(f"run_id={stage}"),
        "train": lambda: training(folder.parent),
        "score": lambda: steps_committed(folder) == [512],
    }
    words = [f"run_id={stage}", *_words(folder.parent, *more)]  # a flow run's name is cut
    command = [sys.executable, "-m", "rl_research", "train", *words]
    with _process(command, tmp_path / "log", env) as child:
        until(began[stage])
        child.send_signal(getattr(signal, name))
        code = child.wait(40)

    assert code == (-signal.SIGTERM if stage == "start" and code != 75 else 75)
    flow_run = until(lambda: _named(f"run_id={stage}"))
    state = until(lambda: read(flow_run.id).state)
    assert state.is_crashed()
    assert flow_run.deployment_id is None
    if stage != "start":
        assert state.name == "Preempted"
        assert record_of(folder)["status"] == "interrupted"
        newest = folder / "checkpoints" / f"step-{steps_committed(folder)[-1]:09d}"
        assert json.loads((newest / "manifest.json").read_text())["files"]


def _named(words: str) -> FlowRun | None:
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=words)))
    return found[0] if found else None
