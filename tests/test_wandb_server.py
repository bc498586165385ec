"""Our double of a W&B server, driven by the real client over real sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import environment
from tcp_proxy import TcpProxy
from wandb_backend import HISTORY
from wandb_server import WandbServer, inspect, order

_CLIENT = """
import sys
import numpy, wandb
mode, run_id, folder, first, last = sys.argv[1:]
settings = wandb.Settings(
    silent=True, console="off", x_disable_stats=True, init_timeout=20, finish_timeout=20,
    x_file_stream_transmit_interval=0.2,
)
with wandb.init(
    mode=mode, id=run_id, project="double", dir=folder, resume="allow", config={"lr": {"start": 0.5}},
    tags=["a", "b"], group="together", name="Ein Läufer", settings=settings,
) as run:
    for step in range(int(first), int(last)):
        run.log({"global_step": step, "loss": step / 2})
    run.log({"global_step": int(last), "picture": wandb.Image(numpy.zeros((4, 4, 3), "uint8"))})
    file = f"{folder}/weights {first}.bin"
    open(file, "w").write(first * 10)
    artifact = wandb.Artifact("weights", type="model", metadata={"step": int(last)})
    artifact.add_file(file)
    logged = run.log_artifact(artifact, aliases=["latest", f"step-{last}"])
    if mode == "online":
        logged.wait(20)
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """A server of the test's own."""
    with WandbServer() as running:
        yield running


def _run(
    server: WandbServer, folder: Path, mode: str, run_id: str, first: int, last: int, **more: str
) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", _CLIENT, mode, run_id, str(folder), str(first), str(last)]
    return _client(server, program, **more)


def _sync(server: WandbServer, folder: Path, *options: str, **more: str) -> str:
    segments = [str(path) for path in sorted(folder.glob("wandb/*run-*"))]
    program = [sys.executable, "-m", "wandb", "sync", *options, *segments]
    done = _client(server, program, **{"WANDB_DIR": str(folder), **more})
    return done.stdout + done.stderr


def _client(server: WandbServer, program: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program, env=environment(**{**server.environment(), **more}),
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def test_an_online_run_arrives_whole(server: WandbServer, tmp_path: Path) -> None:
    """Rows, configuration, summary, picture, artifact and exit code are what the client sent."""
    done = _run(server, tmp_path, "online", "whole", 0, 5)
    assert done.returncode == 0, done.stderr
    run = server.run("whole")
    assert run.steps == [0, 1, 2, 3, 4, 5]
    assert [row["loss"] for row in run.rows[:5]] == [0, 0.5, 1, 1.5, 2]
    assert (run.state, run.exit_code, run.tags) == ("finished", 0, ["a", "b"])
    assert (run.group, run.display_name) == ("together", "Ein Läufer")
    assert run.config == {"lr": {"start": 0.5}}
    assert run.summary["loss"] == 2
    pictures = [data for name, data in run.files.items() if name.startswith("media/images/")]
    assert [data[:4] for data in pictures] == [b"\x89PNG"]
    (artifact,) = server.artifacts("weights")
    assert (artifact.state, artifact.type, artifact.version) == ("COMMITTED", "model", 0)
    assert sorted(artifact.aliases) == ["latest", "step-5"]
    assert artifact.metadata == {"step": 5}
    assert artifact.files == {"weights 0.bin": b"0" * 10}
    assert list(artifact.entries) == ["weights 0.bin"]
    assert server.unanswered == []


@pytest.mark.slow
def test_a_resumed_run_appends(server: WandbServer, tmp_path: Path) -> None:
    """The second segment of an id begins where the first one ended, and takes over the aliases."""
    for first, last in ((0, 3), (4, 6)):
        assert _run(server, tmp_path, "online", "twice", first, last).returncode == 0
    run = server.run("twice")
    assert run.steps == [0, 1, 2, 3, 4, 5, 6]
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [sorted(a.aliases) for a in run.artifacts] == [["step-3"], ["latest", "step-6"]]


@pytest.mark.slow
def test_an_offline_run_arrives_by_sync(server: WandbServer, tmp_path: Path) -> None:
    """`wandb sync` delivers the same as an online run; a second, forced one repeats the rows."""
    assert _run(server, tmp_path, "offline", "later", 0, 3).returncode == 0
    assert server.requests.total() == 0
    assert "Finished syncing" in _sync(server, tmp_path)
    run = server.run("later")
    assert (run.steps, run.state) == ([0, 1, 2, 3], "finished")
    assert [a.state for a in run.artifacts] == ["COMMITTED"]
    _sync(server, tmp_path, "--include-synced")
    assert run.steps == [0, 1, 2, 3] * 2
    assert len(server.artifacts()) == 1


def test_wrong_key_and_forbidden_project(server: WandbServer, tmp_path: Path) -> None:
    """A wrong key gets 401, a project that the key may not write to 403; nothing arrives."""
    wrong = _run(server, tmp_path, "online", "nobody", 0, 1, WANDB_API_KEY="f" * 40)
    assert wrong.returncode != 0
    assert server.requests["unauthorized"] >= 1
    server.forbid("tester/double")
    assert "403" in _run(server, tmp_path, "online", "nobody", 0, 1).stderr
    assert server.run_ids == []


@pytest.mark.slow
def test_what_is_lost_is_sent_again(server: WandbServer, tmp_path: Path) -> None:
    """Refused, cut off and unanswered file streams are repeated by the client and stored once."""
    refused = server.fail("file_stream", status=500, n=1)
    cut = server.fail("file_stream", close=True, n=1)
    unheard = server.fail("file_stream", lose_answer=True, n=1)
    quick = {"WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "0.1", "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "0.2"}
    assert _run(server, tmp_path, "online", "again", 0, 5, **quick).returncode == 0
    assert [failure.hits for failure in (refused, cut, unheard)] == [1, 1, 1]
    assert server.run("again").steps == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_failures_choose_their_run_and_their_request(server: WandbServer, tmp_path: Path) -> None:
    """Only the run and the kind of request that are named fail: rows of one run, the artifact of another."""
    server.fail("file_stream", status=404, run="rowless")
    server.fail("CommitArtifact", status=400, run="bare")
    server.fail("artifact", status=403, run="bare")
    for run_id in ("rowless", "bare"):
        assert _run(server, tmp_path, "offline", run_id, 0, 3).returncode == 0
    _sync(server, tmp_path)
    assert server.run("rowless").steps == []
    assert [a.state for a in server.run("rowless").artifacts] == ["COMMITTED"]
    assert server.run("bare").steps == [0, 1, 2, 3]
    assert [a.state for a in server.run("bare").artifacts] == ["PENDING"]


@pytest.mark.slow
def test_the_public_api_reads_what_arrived(server: WandbServer, tmp_path: Path) -> None:
    """`wandb.Api()` finds runs, their state and last step, files, history and artifacts."""
    assert _run(server, tmp_path, "online", "public", 0, 3).returncode == 0
    program = """
import json, wandb
run = wandb.Api().run("tester/double/public")
print(json.dumps({
    "state": run.state, "last": run.lastHistoryStep, "name": run.name, "group": run.group,
    "config": run.config, "loss": run.summary["loss"], "rows": len(list(run.scan_history())),
    "files": sum(file.name.startswith("media/") for file in run.files()),
    "artifact": wandb.Api().artifact("tester/double/weights:latest").version,
    "runs": len(wandb.Api().runs("tester/double")), "entity": wandb.Api().default_entity,
}))
try:
    wandb.Api().run("tester/double/missing")
except wandb.Error as error:
    print(error)
"""
    done = _client(server, [sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
    facts, missing = done.stdout.splitlines()
    assert facts == (
        '{"state": "finished", "last": 3, "name": "Ein L\\u00e4ufer", "group": "together", '
        '"config": {"lr": {"start": 0.5}}, "loss": 1, "rows": 4, "files": 1, "artifact": "v0", '
        '"runs": 1, "entity": "tester"}'
    )
    assert "Could not find run" in missing
    assert server.unanswered == []


@pytest.mark.slow
def test_a_connection_that_is_cut_loses_nothing_for_good(server: WandbServer, tmp_path: Path) -> None:
    """Behind a proxy that goes down in the middle, what is missing arrives by a later sync."""
    assert _run(server, tmp_path, "offline", "cut", 0, 2000).returncode == 0
    impatient = {
        f"WANDB_X_{part}_{name}": value
        for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
        for name, value in (("RETRY_MAX", "1"), ("RETRY_WAIT_MIN_SECONDS", "0.1"), ("RETRY_WAIT_MAX_SECONDS", "0.2"))
    }
    with TcpProxy(server.port) as proxy:
        proxy.cut_after(16_000)
        first = _sync(server, tmp_path, WANDB_BASE_URL=proxy.url, **impatient)
        assert "ERROR" in first
        assert server.run("cut").count(HISTORY) < 2001
        proxy.up()
        _sync(server, tmp_path, "--include-synced", WANDB_BASE_URL=proxy.url, **impatient)
    assert set(server.run("cut").steps) == set(range(2001))


@pytest.mark.slow
def test_a_server_of_its_own_process(tmp_path: Path) -> None:
    """Run as a program it serves, tells what it has got, and takes orders to fail."""
    program = [sys.executable, str(Path(__file__).with_name("wandb_server.py")), "--entity", "team"]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        url = process.stdout.readline().strip()
        with WandbServer() as settings:
            more = {"WANDB_BASE_URL": url}
            order(url, match="UpsertBucket", status=403)
            assert _run(settings, tmp_path, "online", "far", 0, 2, **more).returncode != 0
            order(url)
            assert _run(settings, tmp_path, "online", "far", 0, 2, **more).returncode == 0
        found = inspect(url)["runs"]["team/double/far"]
        process.stdin.close()
        assert process.wait(timeout=20) == 0
    assert (found["steps"], found["state"]) == ([0, 1, 2], "finished")
