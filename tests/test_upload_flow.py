"""Uploads as Prefect sees them, to a real S3 server that fails: tasks, retries, leftovers, signals.

Slow because flow runs and whole processes are started against a real API.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from faults import Faults, faults_before
from helpers import Nursery, environment, outcome, record_of, steps_committed, tiny
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings
from servers import Server

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Experiment, load_config
from rl_research.errors import ConfigError
from rl_research.flows.train import train
from rl_research.flows.upload import upload
from rl_research.orchestration import retry_for, upload_tasks
from rl_research.runs.lease import FOR_UPLOAD, leased_folder
from rl_research.runs.run import open_run
from rl_research.storage.hiccups import TRIES
from rl_research.training import stages
from rl_research.uploads import pending

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]

PUT = ("PUT", "POST")
ALL = [32, 64, 96]


@pytest.fixture
def faults(s3: Server) -> Iterator[Faults]:
    """A proxy before the S3 server."""
    s3.bucket("uploads")
    with faults_before(s3) as faults:
        yield faults


def _words(tmp_path: Path, faults: Faults, *more: str) -> list[str]:
    """A tiny experiment with a prefix of its own, through the proxy."""
    there = faults.server.at(faults.port).overrides(f"uploads/{tmp_path.name}")
    short = ["storage.timeout=5", "checkpoint.keep_last=9", "wandb=disabled"]
    return tiny(tmp_path / "runs", "mine", *short, *there, *more)


def _stored(tmp_path: Path, s3: Server) -> list[int]:
    """The steps that are whole in the bucket, read past the proxy."""
    url = s3.url(f"uploads/{tmp_path.name}")
    found = checkpoints.list_checkpoints(checkpoints.remote_store(url, s3.options, "mine"))
    for checkpoint in found:
        checkpoint.verify()
    return [checkpoint.global_step for checkpoint in found]


def _until(ask: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.1)
    return pytest.fail(f"not within {seconds:.0f} seconds")


def _task_runs(flow_run_id: str, name: str) -> list[Any]:
    only = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=only)
    return [run for run in found if run.name == name]


def _ended(flow_run_id: str, name: str) -> list[Any]:
    """The task runs called *name*, when all of them have ended; they reach the database as events."""

    def ask() -> list[Any]:
        runs = _task_runs(flow_run_id, name)
        return runs if runs and all(r.state and r.state.is_final() for r in runs) else []

    found: list[Any] = _until(ask)
    return found


# ---------------------------------------------------------------- tasks of the flow run


def test_each_upload_is_a_task_with_its_own_retries(tmp_path: Path, faults: Faults, s3: Server) -> None:
    """Refused for longer than a request is repeated, and that twice, a checkpoint arrives at its task's third try."""
    intent = "step-000000032/uploading.json"
    faults.fail("status", status=503, code="SlowDown", times=2 * TRIES, methods=PUT, path=intent)
    done = train(_words(tmp_path, faults))
    assert (done["status"], done["not_uploaded"]) == ("finished", [])
    assert _stored(tmp_path, s3) == ALL
    runs = {step: _ended(done["flow_run_id"], f"upload step {step}") for step in ALL}
    assert [run.run_count for run in runs[32]] == [3]
    assert all(run.state.is_completed() for step in ALL for run in runs[step])
    with get_client(sync_client=True) as client:
        shown = [(str(a.key), str(a.data)) for a in client.read_artifacts(limit=200)]
    last = [text for key, text in shown if key == "checkpoint-mine-step-000000096"]
    ours = [text for text in last if done["flow_run_id"] in text]
    assert any("final_scores" in text and tmp_path.name in text for text in ours)


def test_an_outage_of_seconds_is_ridden_out(tmp_path: Path, faults: Faults, s3: Server) -> None:
    """A server that is gone for seconds in the middle of an upload costs tries, and nothing else."""

    def outage() -> None:
        _until(lambda: any("step-000000064" in path for path in faults.paths))
        faults.refuse()
        time.sleep(4)
        faults.accept()

    thread = threading.Thread(target=outage, daemon=True)
    thread.start()
    done = train(_words(tmp_path, faults))
    thread.join()
    assert done["not_uploaded"] == []
    assert _stored(tmp_path, s3) == ALL


def test_a_refusal_is_not_retried_and_not_fatal(
    tmp_path: Path, faults: Faults, s3: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """What waiting does not mend is tried once by its task; the flow run completes with a warning."""
    refused = {"status": 403, "code": "AccessDenied", "methods": PUT, "path": "step-000000064/"}
    faults.fail("status", **refused)
    state = train(_words(tmp_path, faults), return_state=True)
    assert state.is_completed()
    done = state.result()
    assert done["not_uploaded"] == [64]
    assert _stored(tmp_path, s3) == [32, 96]
    assert {run.run_count for run in _ended(done["flow_run_id"], "upload step 64")} == {1}
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert any("step 64 is not uploaded" in line and "access is denied" in line for line in said)


def test_delays_grow_to_the_bound() -> None:
    """The schedule of retries doubles up to a minute and sums to the bound, however long that is."""
    for seconds in (0.0, 1.0, 5.0, 62.0, 900.0, 86_400.0):
        options = retry_for(seconds)
        delays = options["retry_delay_seconds"]
        assert sum(delays) == pytest.approx(seconds)
        assert options["retries"] == len(delays) <= 50
        assert delays[:-1] == sorted(delays[:-1])
    assert retry_for(900)["retry_delay_seconds"][:7] == [2, 4, 8, 16, 32, 60, 60]


def test_no_retry_takes_no_delays(tmp_path: Path, faults: Faults) -> None:
    """With ``storage.retry_for=0`` a lost connection is met once per upload."""
    faults.fail("reset", methods=PUT, path="step-000000064/")
    done = train(_words(tmp_path, faults, "storage.retry_for=0"))
    assert done["not_uploaded"] == [64]
    assert {run.run_count for run in _ended(done["flow_run_id"], "upload step 64")} == {1}


# ---------------------------------------------------------------- an API that is not there


def _checkpoint(tmp_path: Path) -> Checkpoint:
    return checkpoints.commit(tmp_path, 7, {"a.bin": b"7"}, {"run_id": "mine"})


def test_without_the_api_uploads_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An API that is gone while a run goes on costs its task runs, not its uploads."""
    uploaded: list[Checkpoint] = []

    def note(checkpoint: Checkpoint) -> Checkpoint:
        uploaded.append(checkpoint)
        return checkpoint

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/api"
        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: url}):
            upload_tasks.UploadByTask(900)(note, _checkpoint(tmp_path))
    assert [checkpoint.global_step for checkpoint in uploaded] == [7]
    assert time.monotonic() - began < 30
    assert "API does not answer" in caplog.text


@pytest.mark.parametrize("begun", [False, True])
def test_an_api_that_goes_away_meanwhile_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """A task run that Prefect could not begin, or could not end, uploads once all the same."""
    uploaded: list[Checkpoint] = []
    by = upload_tasks.UploadByTask(900)

    def lost(upload: Any, checkpoint: Checkpoint) -> None:
        if begun:
            upload(checkpoint)
        raise RuntimeError("Failed to reach API")

    monkeypatch.setattr(by, "_task", lost)
    by(uploaded.append, _checkpoint(tmp_path))  # type: ignore[func-returns-value]
    assert len(uploaded) == 1


def test_what_the_upload_raises_is_what_is_seen(tmp_path: Path) -> None:
    """The reason that a checkpoint did not arrive comes through Prefect unchanged, after one try."""
    tries: list[int] = []

    def refuse(checkpoint: Checkpoint) -> Checkpoint:
        tries.append(checkpoint.global_step)
        raise ConfigError("the bucket is not yours")

    @flow
    def once() -> None:
        upload_tasks.UploadByTask(900)(refuse, _checkpoint(tmp_path))

    with pytest.raises(ConfigError, match="not yours"):
        once()
    assert tries == [7]


# ---------------------------------------------------------------- what is left at the end


def _cli(words: list[str], s3: Server, *more: str) -> subprocess.CompletedProcess[str]:
    env = environment(**s3.variables, PREFECT_API_URL=str(PREFECT_API_URL.value()))
    command = [sys.executable, "-m", "rl_research", "train", *words, *more]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_a_store_that_is_gone_at_the_end_is_no_failure(tmp_path: Path, faults: Faults, s3: Server) -> None:
    """The command ends with 0 and says what stayed behind; the same command delivers it."""
    faults.fail("reset", methods=PUT, path="step-000000096/")
    words = _words(tmp_path, faults, "storage.flush_timeout=3")
    done = _cli(words, s3, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["not_uploaded"]) == ("finished", [96])
    assert result["scores"]["episodes"] == 4
    assert "step 96" in done.stderr
    assert _stored(tmp_path, s3) == [32, 64]
    assert record_of(tmp_path / "runs/mine")["not_uploaded"] == [96]
    (given_up,) = _ended(result["flow_run_id"], "upload step 96")
    assert given_up.state.name == "GivenUp"

    assert "not sent    step 96" in _again_in_vain(words, s3)
    faults.clear()
    committed = (tmp_path / "runs/mine/checkpoints/step-000000096/model.zip").stat().st_mtime_ns
    again = json.loads(_cli(words, s3, "--json").stdout)
    assert again["not_uploaded"] == []
    assert again["checkpoint"].startswith("s3://")
    assert again["scores"] == result["scores"]
    assert _stored(tmp_path, s3) == ALL
    model = tmp_path / "runs/mine/checkpoints/step-000000096/model.zip"
    assert model.stat().st_mtime_ns == committed


def _again_in_vain(words: list[str], s3: Server) -> str:
    done = _cli([*words, "storage.retry_for=1"], s3)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_upload_flow_delivers_what_is_left(tmp_path: Path, faults: Faults, s3: Server) -> None:
    """A task per checkpoint, a table of what became of them, and a second round finds nothing to do."""
    faults.fail("reset", methods=PUT, path="step-")
    words = _words(tmp_path, faults, "storage.flush_timeout=1", "storage.retry_for=1")
    assert train(words)["not_uploaded"] == ALL
    faults.clear()
    state = upload(str(tmp_path / "runs"), return_state=True)
    assert state.is_completed()
    rows = state.result()
    assert [(row.run_id, row.step, row.outcome) for row in rows] == [
        ("mine", step, "delivered") for step in reversed(ALL)
    ]
    assert _stored(tmp_path, s3) == ALL
    record = record_of(tmp_path / "runs/mine")
    assert record["not_uploaded"] == []
    assert record["checkpoint"].startswith("s3://")
    for step in ALL:
        (run,) = _ended(str(state.state_details.flow_run_id), f"upload step {step}")
        assert run.state.is_completed()
    with get_client(sync_client=True) as client:
        tables = [str(a.data) for a in client.read_artifacts(limit=200) if a.key == "deliveries"]
    assert any(tmp_path.name in table and "delivered" in table for table in tables)
    assert upload(str(tmp_path / "runs")) == []


def test_the_upload_flow_says_what_it_cannot_deliver(tmp_path: Path, faults: Faults, s3: Server) -> None:
    """A refused checkpoint fails the flow run at its end, with the reason; the others are delivered."""
    faults.fail("reset", methods=PUT, path="step-")
    words = _words(tmp_path, faults, "storage.flush_timeout=1", "storage.retry_for=1")
    train(words)
    faults.clear()
    faults.fail("status", status=403, code="AccessDenied", methods=PUT, path="step-000000064/")
    state = upload(str(tmp_path / "runs"), return_state=True)
    assert state.is_failed()
    assert "1 of 3 are left" in str(state.message)
    assert "access is denied" in str(state.message)
    assert _stored(tmp_path, s3) == [32, 96]
    assert record_of(tmp_path / "runs/mine")["not_uploaded"] == [64]


# ---------------------------------------------------------------- what the upload flow looks at


def _left_behind(runs: Path, url: str, *more: str) -> Path:
    """A run folder whose checkpoint has not been uploaded."""
    config = load_config([*tiny(runs, "mine", "wandb=disabled"), f"storage.url='{url}'", *more])
    with open_run(Experiment(config)) as run:
        stages.train_run(run)
    return run.dir


def test_a_run_that_is_open_is_left_to_itself(tmp_path: Path) -> None:
    """The upload flow does not meddle with a run that another process has open."""
    folder = _left_behind(tmp_path / "runs", f"{tmp_path}/store")
    with leased_folder(folder):
        assert upload(str(tmp_path / "runs")) == []
    assert len(upload(str(tmp_path / "runs"))) == len(steps_committed(folder))


def test_a_run_that_starts_waits_for_a_delivery(tmp_path: Path) -> None:
    """A run is not refused because the upload flow is just delivering a checkpoint of it."""
    folder = _left_behind(tmp_path / "runs", f"{tmp_path}/store")
    held, done = threading.Event(), threading.Event()

    def deliver() -> None:
        with leased_folder(folder, FOR_UPLOAD):
            held.set()
            time.sleep(1)
            done.set()

    threading.Thread(target=deliver, daemon=True).start()
    assert held.wait(10)
    with leased_folder(folder):
        assert done.is_set()
        with pytest.raises(ConfigError, match="has this run open"), leased_folder(folder):
            pass


def test_secrets_are_not_in_the_folder_and_not_asked_of_it(tmp_path: Path) -> None:
    """What is masked in config.yaml is left to the client's own ways to find it."""
    folder = _left_behind(tmp_path / "runs", f"{tmp_path}/store")
    described = yaml.safe_load((folder / "config.yaml").read_text())
    described["storage"]["options"] = {"secret": "***", "deep": {"token": "***", "a": 1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(described))
    (found,) = pending.runs_with_storage(tmp_path / "runs")
    assert found.config.storage.options == {"deep": {"a": 1}}


def test_what_is_no_run_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Former runs, foreign folders, damaged descriptions and masked URLs end no round."""
    folder = _left_behind(tmp_path / "runs", f"{tmp_path}/store")
    former = folder.rename(folder.with_name("mine.replaced-1"))
    for name, text in {
        "empty": "",
        "list": "[]",
        "broken": "{",
        "masked": (former / "config.yaml").read_text().replace(f"{tmp_path}/store", "sftp://***@h/x"),
    }.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.yaml").write_text(text)
    assert upload(str(tmp_path / "runs")) == []
    assert "its secret is not kept" in caplog.text
    assert upload(str(tmp_path / "nothing here")) == []


# ---------------------------------------------------------------- signals


def test_sigterm_during_a_hanging_upload_obeys_the_deadline(tmp_path: Path, faults: Faults, s3: Server) -> None:
    """A process whose store hangs ends with 75 within its deadline, committed, and names what is left."""
    faults.fail("hang", methods=PUT, path="step-")
    more = ["experiment.total_timesteps=400000", "checkpoint.every=512", "evaluation.enabled=false"]
    words = _words(tmp_path, faults, *more, "storage.timeout=60", "checkpoint.deadline=6")
    env = environment(**s3.variables, PREFECT_API_URL=str(PREFECT_API_URL.value()))
    command = [sys.executable, "-m", "rl_research", "train", *words]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        _until(lambda: any("step-" in path for path in faults.paths), 120)
        folder = tmp_path / "runs/mine"
        _until(lambda: len(steps_committed(folder)) > 1)
        child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _until(lambda: record_of(folder)["status"] == "interrupted")
        assert time.monotonic() - began < 7, "the deadline is 6 seconds"
        code = child.wait(60)  # Prefect and the interpreter take their time to end
    finally:
        child.kill()
    assert code == 75, (tmp_path / "log").read_text()
    record = record_of(folder)
    assert record["not_uploaded"] == steps_committed(folder)


def test_killed_during_an_upload_another_machine_goes_on(tmp_path: Path, faults: Faults, s3: Server) -> None:
    """SIGKILL in the middle of an upload, and the URL alone leads another machine to the same bits."""
    words = _words(tmp_path, faults)
    nursery = Nursery(tmp_path / "errors")
    try:
        whole = [w for w in words if not w.startswith("storage.")]
        assert nursery.run([*whole, f"runs_dir='{tmp_path / 'whole'}'"]) == 0
        faults.fail("hang", methods=PUT, path="step-000000064/model.zip")
        segment = nursery.start(words)
        _until(lambda: any("step-000000064/model.zip" in path for path in faults.paths))
        segment.kill(with_wandb=False)
        assert _stored(tmp_path, s3) == [32]
        faults.clear()
        assert nursery.run([*words, f"runs_dir='{tmp_path / 'elsewhere'}'"]) == 0
    finally:
        nursery.close()
    assert outcome(tmp_path / "elsewhere/mine") == outcome(tmp_path / "whole/mine")
    assert _stored(tmp_path, s3)[-1] == 96
