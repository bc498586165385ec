"""Whatever fails on the way: said truly, repeated without doubling a row, and ended in time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import subprocess
import threading
import time
from pathlib import Path

import offline_runs
import pytest
from helpers import children, environment
from offline_runs import ledger_of
from syncing import call, command, states, sync
from tcp_proxy import TcpProxy
from wandb_server import WandbServer

from rl_research.sync import is_verified

FAILURES = [  # what of the server fails, how, and what is to be said of the run
    ("UpsertBucket", 500, "retryable"),
    ("UpsertBucket", 429, "retryable"),
    ("UpsertBucket", 404, "retryable"),
    ("UpsertBucket", 401, "blocked"),
    ("UpsertBucket", 403, "blocked"),
    ("file_stream", 500, "retryable"),
    ("file_stream", 404, "retryable"),
    ("file_stream", 413, "retryable"),
    ("file_stream", 401, "blocked"),
    ("file", 500, "partial"),
    ("CreateRunFiles", 500, "partial"),
    ("CreateArtifact", 500, "partial"),
    ("artifact", 500, "partial"),
    ("manifest", 500, "partial"),
    ("RunResumeStatus", 503, "retryable"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run for each failure, one for none, and a long one."""
    folder = tmp_path_factory.mktemp("library")
    words = [f"rich:r{number:02d}:{20 + number}" for number in range(len(FAILURES) + 1)]
    offline_runs.make(folder, *words, "bare:long:6000")
    return folder / "runs"


@pytest.mark.slow
def test_every_failure_is_told_and_mended(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Each failure stays its own run's, nothing that failed counts as synced, and the rest comes later."""
    folder = offline_runs.copy(library, tmp_path / "runs")
    for number, (kind, status, _) in enumerate(FAILURES):
        server.fail(kind, status=status, run=f"r{number:02d}")
    outcomes = sync(folder)
    whole = f"r{len(FAILURES):02d}"
    expected = {f"r{number:02d}": state for number, (_, _, state) in enumerate(FAILURES)}
    assert {k: o.state for k, o in outcomes.items()} == {
        **expected, whole: "synced", "long": "synced",
    }  # fmt: skip
    for number, (kind, status, _) in enumerate(FAILURES):
        run_id = f"r{number:02d}"
        assert str(status) in outcomes[run_id].reason, (kind, outcomes[run_id])
        assert not is_verified(folder / run_id)
        assert not list((folder / run_id).rglob("*.synced"))
        assert ledger_of(folder / run_id, run_id)["attempts"] == 1
    assert outcomes["r03"].remedy == "Set WANDB_API_KEY to a key of this server, or run `wandb login`."

    server.heal()
    again = sync(folder)
    assert {o.state for o in again.values()} == {"synced", "unchanged"}, "also what a server refused, which was mended"
    for number in range(len(FAILURES) + 1):
        run = server.run(f"r{number:02d}")
        assert [row["_step"] for row in run.rows] == list(range(22 + number)), FAILURES[number : number + 1]
        assert {a.collection for a in run.artifacts if a.state == "COMMITTED"} >= {
            f"{kind}-r{number:02d}" for kind in ("staged", "in-place", "reference")
        }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CreateArtifactFiles", "CommitArtifact"])
def test_an_artifact_that_is_not_taken_is_sent_again(
    kind: str, library: Path, tmp_path: Path, server: WandbServer
) -> None:
    """wandb says nothing of an artifact that failed; this does, and sends it with the next sync."""
    folder = offline_runs.copy(library / "r00", tmp_path / "r00")
    server.fail(kind, status=400)
    assert sync(folder)["r00"].state == "partial"
    assert not server.artifacts("in-place-r00") or server.artifacts("in-place-r00")[0].state == "PENDING"
    server.heal()
    assert sync(folder)["r00"].state == "synced"
    assert server.artifacts("in-place-r00")[-1].state == "COMMITTED"
    assert len(server.run("r00").rows) == 22


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_cut_in_the_middle_repeats_no_row(
    lost: str, library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that arrived before the line was cut are not sent again, acknowledged or not."""
    folder = offline_runs.copy(library / "long", tmp_path / "long")
    monkeypatch.setenv("WANDB_X_FILE_STREAM_MAX_BYTES", "100000")
    if lost == "answer":
        server.fail("file_stream", lose_answer=True, close=True, after=1)
    else:
        server.fail("file_stream", close=True, after=1)
    first = sync(folder)["long"]
    assert first.is_later, first
    server.heal()
    assert sync(folder)["long"].state == "synced"
    assert server.run("long").steps == list(range(6000))


@pytest.mark.slow  # five syncs, one of them whole
def test_random_cuts_lose_and_repeat_nothing(
    library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the line is cut, wherever: in the end every row is there, once."""
    for run_id in ("r00", "r01", "long"):
        folder = offline_runs.copy(library / run_id, tmp_path / "runs" / run_id).parent
    chance = random.Random(5)
    with TcpProxy(server.port) as proxy:
        server.public_url = proxy.url
        monkeypatch.setenv("WANDB_BASE_URL", proxy.url)
        for _ in range(3):
            proxy.cut_after(chance.randrange(20_000, 400_000))
            sync(folder)
            proxy.up()
        outcomes = sync(folder)
    assert {o.state for o in outcomes.values()} <= {"synced", "unchanged"}, outcomes
    assert server.run("long").steps == list(range(6000))
    for number in (0, 1):
        assert [row["_step"] for row in server.run(f"r{number:02d}").rows] == list(range(22 + number))


@pytest.mark.slow
def test_a_server_that_hangs_is_left_in_time(
    library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that gets nowhere is ended with all its processes, and is tried again later."""
    folder = offline_runs.copy(library / "r00", tmp_path / "r00")
    monkeypatch.setenv("RL_RESEARCH_SYNC_SECONDS", "4")
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TIMEOUT_SECONDS", "600")
    server.fail("file_stream", hang=600)
    others = set(children(os.getpid()))  # of other tests
    outcome = sync(folder)["r00"]
    assert outcome.state == "retryable"
    assert "no end after" in outcome.reason
    left = set(children(os.getpid())) - others
    assert not [pid for pid in left if "wandb" in _command(pid)]
    assert ledger_of(folder, "r00")["next_try"] > time.time()
    server.heal()
    assert sync(folder, only_due=True)["r00"].state == "waiting"
    monkeypatch.delenv("RL_RESEARCH_SYNC_SECONDS")
    assert sync(folder)["r00"].state == "synced"


@pytest.mark.slow
def test_nobody_there_and_no_key(
    library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection is for later; a missing or wrong key is somebody's matter, until it changes."""
    folder = offline_runs.copy(library / "r00", tmp_path / "r00")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert sync(folder)["r00"].state == "retryable"
    monkeypatch.setenv("WANDB_BASE_URL", server.public_url)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    outcome = sync(folder)["r00"]
    assert (outcome.state, outcome.remedy) == ("blocked", "Set WANDB_API_KEY or run `wandb login`.")
    assert server.requests.total() == 0
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    assert sync(folder)["r00"].state == "blocked", "another key, and wrong"
    asked = server.requests.total()
    assert sync(folder)["r00"].state == "blocked"
    assert server.requests.total() == asked + 1, "one question tells that the same key is not known yet"
    assert "ffff" not in json.dumps(ledger_of(folder, "r00"))
    monkeypatch.setenv("WANDB_API_KEY", server.key)
    assert sync(folder)["r00"].state == "synced"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "status"), [("UpsertBucket", 403), ("file_stream", 401), ("RunResumeStatus", 403)])
def test_rights_that_were_mended_on_the_server_are_found_out(
    kind: str, status: int, library: Path, tmp_path: Path, server: WandbServer
) -> None:
    """A sync that somebody types tries what the server refused, a schedule when it is due; no row comes twice."""
    folder = offline_runs.copy(library / "r00", tmp_path / "r00")
    server.fail(kind, status=status, after=1 if kind == "file_stream" else 0)
    waits = []
    for tried in (1, 2, 3):
        assert states(sync(folder)) == {"r00": "blocked"}
        ledger = ledger_of(folder, "r00")
        assert ledger["attempts"] == tried
        waits.append(ledger["next_try"] - ledger["last_attempt"])
    assert waits == sorted(waits), "growing intervals"
    asked = server.requests.total()
    assert states(sync(folder, only_due=True)) == {"r00": "blocked"}, "the schedule waits until it is due"
    assert server.requests.total() == asked
    server.heal()
    path = folder / "wandb" / "sync-r00.json"
    path.write_text(json.dumps({**ledger, "next_try": 0}))
    assert states(sync(folder, only_due=True)) == {"r00": "synced"}
    assert [row["_step"] for row in server.run("r00").rows] == list(range(22))


@pytest.mark.slow
def test_a_ledger_of_an_older_version_is_not_blocked_for_ever(
    library: Path, tmp_path: Path, server: WandbServer
) -> None:
    """It does not say who blocked the run, so it is tried once; a day is the longest that a schedule waits."""
    folder = offline_runs.copy(library / "r00", tmp_path / "r00")
    server.fail("UpsertBucket", status=403)
    sync(folder)
    path = folder / "wandb" / "sync-r00.json"
    path.write_text(json.dumps({**ledger_of(folder, "r00"), "by_server": None, "attempts": 5000}))
    assert states(sync(folder)) == {"r00": "blocked"}
    ledger = ledger_of(folder, "r00")
    assert ledger["by_server"] is True
    assert 0 < ledger["next_try"] - time.time() <= 24 * 3600
    server.heal()
    assert states(sync(folder)) == {"r00": "synced"}


@pytest.mark.slow
def test_a_delivered_run_that_is_forced_while_nobody_answers_is_no_worse(
    library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forced sync that reaches nobody is for later, and the next one finds that all is there."""
    folder = offline_runs.copy(library / "r00", tmp_path / "r00")
    assert states(sync(folder)) == {"r00": "synced"}
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert states(sync(folder, force=True)) == {"r00": "retryable"}
    monkeypatch.setenv("WANDB_BASE_URL", server.public_url)
    assert states(sync(folder)) == {"r00": "synced"}
    assert len(server.run("r00").rows) == 22


@pytest.mark.slow  # waits for a killed sync's child
def test_sync_killed_and_two_at_once_repeat_nothing(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """A sync that dies by SIGKILL, and a second beside the first, neither lose nor repeat a row."""
    folder = offline_runs.copy(library / "long", tmp_path / "long")
    words = (folder, "--json", "--tries", 1)
    server.fail("file_stream", hang=30, after=1, n=1)
    first = subprocess.Popen(command(*words), env=environment(), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while server.requests["file_stream"] < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    beside = call(*words)
    assert beside.returncode == 75
    (other,) = json.loads(beside.stdout)["runs"]
    assert other["state"] == "busy"
    assert other["reason"].startswith(f"process {first.pid} on ")
    first.kill()
    first.wait()
    server.heal()
    deadline = time.monotonic() + 60
    done = call(*words)
    while done.returncode == 75 and time.monotonic() < deadline:
        time.sleep(0.5)
        done = call(*words)
    assert done.returncode == 0, done.stderr
    assert server.run("long").steps == list(range(6000))


def test_on_a_disk_without_locks_nothing_is_sent(
    library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can tell whether another sync has the run, it is blocked, with the disk's reason."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    outcome = sync(offline_runs.copy(library / "r00", tmp_path / "r00"))["r00"]
    assert (outcome.state, "No locks available" in outcome.reason) == ("blocked", True)
    assert server.requests["file_stream"] == 0


@pytest.mark.slow
def test_two_threads_share_no_run(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Syncs in one process exclude each other as processes do."""
    folder = offline_runs.copy(library / "long", tmp_path / "long")
    states: list[str] = []
    threads = [threading.Thread(target=lambda: states.append(sync(folder)["long"].state)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "synced" in states
    assert set(states) <= {"synced", "busy", "unchanged"}
    assert server.run("long").steps == list(range(6000))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
