"""Offline runs reach the server: every row, file and artifact, once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import offline_runs
import pytest
from helpers import children, lives
from offline_runs import ledger_of, log_of
from syncing import states, sync
from tcp_proxy import TcpProxy
from wandb_backend import HISTORY
from wandb_server import WandbServer

from rl_research.sync import is_verified


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every kind, made once; tests take copies."""
    folder = tmp_path_factory.mktemp("library")
    offline_runs.make(
        folder, "bare:bare:40", "rich:rich:10", "plain:plain:15", "bare:twice:6", "bare:twice:4",
        "bare:fell:5", "bare:many:2500",
    )  # fmt: skip
    return folder


@pytest.mark.slow
def test_everything_arrives_once(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Rows, media, tables, artifacts, segments and a failed online start's rows are all there, once."""
    folder = offline_runs.copy(library, tmp_path / "läuft hier")
    outcomes = sync(folder)
    assert states(outcomes) == dict.fromkeys(("bare", "rich", "plain", "twice", "fell", "many"), "synced")
    assert server.run("bare").steps == list(range(40))
    assert server.run("many").steps == list(range(2500))
    assert server.run("plain").steps == list(range(15))
    assert server.run("twice").steps == [0, 1, 2, 3, 4, 5, 1000, 1001, 1002, 1003]
    assert server.run("fell").steps == list(range(5))
    assert sorted(server.run_ids) == ["bare", "fell", "many", "plain", "rich", "twice"]
    rich = server.run("rich")
    assert [row["_step"] for row in rich.rows] == list(range(12))
    assert {Path(name).suffix for name in rich.files} >= {".png", ".json"}
    committed = {a.collection for a in server.backend.artifacts.values() if a.state == "COMMITTED"}
    assert {f"{kind}-rich" for kind in ("staged", "in-place", "reference")} <= committed
    assert all(artifact.state == "COMMITTED" for artifact in server.backend.artifacts.values())
    assert outcomes["rich"].artifacts == 4, "three models and the table"
    assert all(run.state == "finished" for run in map(server.run, server.run_ids))
    assert server.unanswered == []

    asked = server.requests.total()
    assert set(states(sync(folder)).values()) == {"unchanged"}
    assert server.requests.total() == asked, "a second sync asks nobody"
    assert all(is_verified(home) for home in (folder / "runs").iterdir())


@pytest.mark.slow
def test_a_ledger_that_is_lost_costs_no_row(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Without its ledger, and forced, a delivered run is asked for and not sent again."""
    folder = offline_runs.copy(library, tmp_path / "copy")
    sync(folder)
    for ledger in folder.rglob("sync-*.json"):
        ledger.unlink()
    assert set(states(sync(folder)).values()) == {"synced"}
    assert set(states(sync(folder, force=True)).values()) == {"synced"}
    assert server.run("bare").steps == list(range(40))
    assert len(server.run("many").rows) == 2500
    assert len(server.run("twice").rows) == 10
    assert len(server.run("plain").rows) == 15
    assert len(server.run("plain").output) == len(set(server.run("plain").output))


@pytest.mark.slow
def test_a_run_that_goes_on_sends_only_what_is_new(tmp_path: Path, server: WandbServer) -> None:
    """A segment that comes after a sync is sent alone; its steps follow those of the first."""
    offline_runs.make(tmp_path, "bare:on:5")
    sync(tmp_path)
    offline_runs.make(tmp_path, "bare:on:3")
    assert not is_verified(tmp_path / "runs" / "on")
    (outcome,) = sync(tmp_path).values()
    assert (outcome.state, outcome.rows, outcome.rows_recorded) == ("synced", 8, 8)
    assert [row["_step"] for row in server.run("on").rows] == list(range(8))
    assert server.run("on").steps == [0, 1, 2, 3, 4, 1000, 1001, 1002]
    first = min((tmp_path / "runs/on/wandb").glob("offline-run-*"))
    assert ledger_of(tmp_path, "on")["segments"][first.name]["delivered"] is True


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bare", "plain"])
def test_a_killed_run_is_sealed_and_synced_as_crashed(kind: str, tmp_path: Path, server: WandbServer) -> None:
    """SIGKILL costs what was not on disk yet, no more; the log itself is left as it was."""
    offline_runs.make_killed(tmp_path, f"{kind}:dead:3000")
    log = log_of(tmp_path, "dead")
    before = log.read_bytes()
    (outcome,) = sync(tmp_path).values()
    run = server.run("dead")
    assert outcome.state == "synced", outcome
    assert run.steps == list(range(outcome.rows))
    if kind == "bare":  # our own loggers flush every second; a plain one every fifteen
        assert outcome.rows == 3000
    assert run.state == "failed"
    assert log.read_bytes() == before
    assert states(sync(tmp_path)) == {"dead": "unchanged"}


@pytest.mark.slow  # W&B's service takes some seconds to notice
def test_a_run_killed_just_now_is_waited_for(tmp_path: Path, server: WandbServer) -> None:
    """W&B's service outlives its program for a moment; that is no live run where the lease is free."""
    program = offline_runs.stay(tmp_path, "bare:dead:30")
    (tmp_path / "runs/dead/.lease").touch()
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    assert states(sync(tmp_path)) == {"dead": "synced"}
    assert server.run("dead").steps == list(range(30))


@pytest.mark.slow  # an online run sends its rows after some seconds
@pytest.mark.parametrize("leased", [True, False])
def test_the_service_of_a_killed_online_run_sends_nothing_more(
    leased: bool, tmp_path: Path, server: WandbServer
) -> None:
    """SIGKILL of a trainer whose rows are still under way: its service ends, and sync sends them once."""
    with TcpProxy(server.port) as proxy:
        program = offline_runs.stay(tmp_path, "online:half:50", **server.environment(proxy.url))
        service = children(program.pid)
        assert service, "W&B's service is a process of its own"
        home = tmp_path / "runs" / "half"
        (home / "run.json").write_text(json.dumps({"wandb": {"mode": "online", "finished": None}}))
        if leased:
            (home / ".lease").touch()
        proxy.hang()  # what is under way stays under way
        program.kill()
        program.wait()
        proxy.up()
        outcomes = sync(tmp_path)
        if outcomes["half"].state == "live":  # without a lease the service itself tells that
            assert not leased
            _until(lambda: not any(map(lives, service)))
            outcomes = sync(tmp_path)
        assert not any(map(lives, service)), "it outlives its program"
        assert states(outcomes) == {"half": "synced"}
        assert server.run("half").steps == list(range(50))
        time.sleep(3)
        assert server.run("half").steps == list(range(50)), "nobody sends any more"


@pytest.mark.slow
def test_a_run_being_written_is_left_alone(tmp_path: Path, server: WandbServer) -> None:
    """A run whose process lives is not touched, and nobody is asked about it; afterwards it is synced."""
    program = offline_runs.stay(tmp_path, "bare:alive:7")
    try:
        assert states(sync(tmp_path)) == {"alive": "live"}
        assert server.requests.total() == 0
        assert not list(tmp_path.rglob("*.synced"))
    finally:
        offline_runs.kill(program)
    assert states(sync(tmp_path)) == {"alive": "synced"}
    assert server.run("alive").steps == list(range(7))


def test_a_moved_folder_keeps_its_artifacts(tmp_path: Path, server: WandbServer) -> None:
    """Files of artifacts are found where the folder is now, staged ones as well as others."""
    made = tmp_path / "made here"
    offline_runs.make(made, "rich:rich:3")
    moved = tmp_path / "and moved"
    shutil.move(made, moved)
    (outcome,) = sync(moved).values()
    assert outcome.state == "synced", outcome
    files = {a.collection: a.files for a in server.backend.artifacts.values()}
    assert files["staged-rich"] == files["in-place-rich"] == {"weights für alle.bin": b"rich" * 100}


@pytest.mark.slow
def test_lost_files_block_a_run_and_nothing_else(tmp_path: Path, server: WandbServer) -> None:
    """What is gone, or is another file by now, is said; all else arrives, and the rest once it is back."""
    folder = tmp_path / "runs"
    offline_runs.make(tmp_path, "rich:rich:3", "bare:other:3")
    model = folder / "rich" / "models" / "weights für alle.bin"
    before = model.read_bytes()
    model.write_bytes(b"x" * len(before))
    outcomes = sync(folder)
    assert states(outcomes) == {"rich": "blocked", "other": "synced"}
    assert str(model) in outcomes["rich"].reason
    assert "--force" in outcomes["rich"].remedy
    assert outcomes["rich"].rows == outcomes["rich"].rows_recorded == 5
    assert not is_verified(folder / "rich")
    assert server.artifacts("staged-rich")[0].state == "COMMITTED"
    assert server.artifacts("in-place-rich") == []
    asked = server.requests.total()
    assert states(sync(folder)) == {"rich": "blocked", "other": "unchanged"}
    assert server.requests.total() == asked
    model.write_bytes(before)
    assert states(sync(folder, force=True))["rich"] == "synced"
    assert server.artifacts("in-place-rich")[0].state == "COMMITTED"
    assert len(server.run("rich").rows) == 5


def test_bad_logs_do_not_stop_good_ones(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Empty, foreign and damaged logs are blocked with their reason; what is sound of them arrives."""
    folder = offline_runs.copy(library / "runs", tmp_path / "runs")
    for run_id, content in {"empty": b"", "foreign": b"not a log" * 99, "head": b":W&B\xe1\xbe\x00"}.items():
        segment = folder / run_id / "wandb" / f"offline-run-20260101_000000-{run_id}"
        segment.mkdir(parents=True)
        (segment / f"run-{run_id}.wandb").write_bytes(content)
        os.utime(segment / f"run-{run_id}.wandb", (1, 1))  # nobody can be writing them
    many = log_of(folder / "many", "many")
    damaged = bytearray(many.read_bytes())
    damaged[200_000] ^= 0xFF
    many.write_bytes(damaged)
    outcomes = sync(folder)
    assert states(outcomes) == {
        "bare": "synced", "rich": "synced", "twice": "synced", "fell": "synced",
        "empty": "blocked", "foreign": "blocked", "head": "blocked", "many": "blocked",
    }  # fmt: skip
    assert "damaged at byte" in outcomes["many"].reason
    assert 0 < outcomes["many"].rows < 2500
    assert server.run("many").steps == list(range(outcomes["many"].rows))
    assert many.read_bytes() == damaged


@pytest.mark.slow  # an online run sends its rows after some seconds
def test_rows_that_an_online_run_could_not_send_are_sent(tmp_path: Path, server: WandbServer) -> None:
    """What stayed behind when the line was cut goes first, then what was logged offline, each row once."""
    with TcpProxy(server.port) as proxy:
        line = server.environment(proxy.url)
        program = offline_runs.stay(tmp_path, "online:half:50", **line)
        deadline = time.monotonic() + 20
        while len(_rows(server, "half")) < 50 and time.monotonic() < deadline:
            time.sleep(0.1)
        offline_runs.kill(program)
    history = server.run("half").stream[HISTORY]
    for line in range(30, 50):
        del history[line]
    assert sync(tmp_path) == {}, "online runs are left to wandb"
    offline_runs.make(tmp_path, "bare:half:5")
    (outcome,) = sync(tmp_path).values()
    assert outcome.state == "synced", outcome
    assert server.run("half").steps == [*range(50), *range(1000, 1005)]


@pytest.mark.slow
def test_the_marker_of_wandb_is_not_believed(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """A marker that lies is neither believed nor left standing; a true one is set."""
    offline_runs.copy(library / "runs" / "bare", tmp_path / "bare")
    marker = log_of(tmp_path, "bare").with_name("run-bare.wandb.synced")
    marker.touch()
    server.fail("file_stream", status=500)
    assert states(sync(tmp_path)) == {"bare": "retryable"}
    assert not marker.exists()
    server.heal()
    assert states(sync(tmp_path)) == {"bare": "synced"}
    assert marker.exists()


@pytest.mark.usefixtures("server")
def test_the_run_s_record_learns_its_page(library: Path, tmp_path: Path) -> None:
    """``run.json`` names the page and the time; the flow run that it names is handed on."""
    offline_runs.copy(library / "runs" / "bare", tmp_path / "bare")
    record = tmp_path / "bare" / "run.json"
    record.write_text(json.dumps({"flow_run_id": "f-1", "wandb": {"url": None, "mode": "offline"}}))
    (outcome,) = sync(tmp_path).values()
    told = json.loads(record.read_text())
    assert told["wandb"]["url"] == outcome.url != ""
    assert told["wandb"]["synced_at"] == ledger_of(tmp_path, "bare")["synced_at"]
    assert outcome.flow_run_id == told["flow_run_id"] == "f-1"


def _until(happens: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def _rows(server: WandbServer, run_id: str) -> list[dict[str, object]]:
    return server.run(run_id).rows if run_id in server.run_ids else []


def test_a_later_segment_leaves_the_summary_of_earlier_ones(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """What only an earlier segment has logged stays in the run's summary when a later one is synced."""
    folder = offline_runs.copy(library, tmp_path / "runs")
    logs = sorted(folder.rglob("run-twice.wandb"), key=lambda log: log.stat().st_size)
    later, earlier = (log.parent for log in logs)  # of four rows and of six
    aside = later.rename(tmp_path / later.name)
    assert states(sync(folder))["twice"] == "synced"
    run = server.run("twice")
    run.stream["wandb-summary.json"] = {0: json.dumps({**run.summary, "final/mean_reward": 7})}
    aside.rename(earlier.with_name(later.name))
    assert states(sync(folder))["twice"] == "synced"
    assert server.run("twice").summary["final/mean_reward"] == 7
    assert server.run("twice").summary["global_step"] == max(server.run("twice").steps)
