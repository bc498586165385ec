"""Online runs against a W&B server that answers, goes away, hangs, or refuses."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Nursery, children, progress, record_of, steps_committed, tiny, wandb_records, wandb_rows
from tcp_proxy import TcpProxy
from wandb_server import WandbServer

from rl_research.errors import ConfigError, LoggingError
from rl_research.storage import is_transient
from rl_research.tracking import NoAnswer, WandbApi
from rl_research.tracking.logger import ExperimentLogger

_ONLINE = ("wandb.mode=online", "wandb.entity=tester", "wandb.project=double")


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """A server of the test's own."""
    with WandbServer() as running:
        yield running


@pytest.fixture
def here(server: WandbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TcpProxy]:
    """W&B in this process speaks to the server, through a proxy; files go below `tmp_path`."""
    import wandb

    with TcpProxy(server.port) as proxy:
        monkeypatch.chdir(tmp_path)
        server.adopt(monkeypatch, proxy.url)
        yield proxy
        proxy.up()
        wandb.teardown()


@pytest.fixture
def nursery(
    here: TcpProxy,  # noqa: ARG001  # sets the environment
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Nursery]:
    """A warm process that forks runs; W&B in them speaks through the proxy."""
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.5")
    warm = Nursery(tmp_path / "stderr.txt")
    yield warm
    warm.close()


def _words(tmp_path: Path, run_id: str, *more: str) -> list[str]:
    return tiny(tmp_path, run_id, *_ONLINE, "experiment.total_timesteps=1000000", *more)


def _logger(run_id: str, **section: Any) -> ExperimentLogger:
    wandb = {"mode": "online", "project": "double", "init_timeout": 8, **section}
    return ExperimentLogger({"wandb": wandb}, run_id=run_id)


def _rows_of(run_dir: Path) -> list[int]:
    return [int(row["global_step"]) for row in progress(run_dir)]


def _numbered(server: WandbServer, run_id: str) -> list[int]:
    """The steps of the rows of numbers that the server has."""
    rows = server.run(run_id).rows
    return [r["global_step"] for r in rows if any(isinstance(v, float) for v in r.values())]


@pytest.mark.usefixtures("here")
def test_an_online_run_says_that_it_has_arrived(server: WandbServer) -> None:
    """Rows, artifact and exit are on the server, and the record says so."""
    with _logger("whole") as logger:
        assert logger.record["finished"] is None
        for step in range(5):
            logger.log_metrics({"x": step / 2}, step=step)
        logger.log_checkpoint("c", "s3://b/x", {"m.zip": (3, "ab" * 32)}, {}, ["best"], wait=20)
    record = logger.record
    assert (record["mode"], record["wanted"], record["reason"]) == ("online", "online", None)
    assert record["finished"] is True
    assert record["path"] == "tester/double/whole"
    assert server.run("whole").steps == [0, 1, 2, 3, 4]
    assert server.run("whole").state == "finished"
    assert server.artifacts("c")[0].aliases == ["latest", "best"]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["refused", "hanging", "wrong key", "forbidden", "slow start"])
def test_what_cannot_be_online_goes_on_offline(
    trouble: str, here: TcpProxy, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Within `init_timeout` the run goes on offline under its own id, and one line says why."""
    expected = _break(trouble, here, server)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING, "rl_research"), _logger("r") as logger:
        assert time.monotonic() - begun < 8 + 4  # what a busy machine takes to start a service
        logger.log_metrics({"x": 1.0}, step=3)
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("rl_research")]
    assert expected in line
    assert "goes on offline, and the next `rl-research sync` delivers it" in line
    record = logger.record
    assert (record["id"], record["mode"], record["wanted"]) == ("r", "offline", "online")
    assert expected in record["reason"]
    assert record["finished"] is True
    assert [step for step, _ in wandb_rows(logger.dir)] == [3]


def test_without_fallback_it_is_an_error(here: TcpProxy, server: WandbServer) -> None:
    """`wandb.fallback=false` refuses to go on offline: before and after W&B has begun."""
    for trouble in ("forbidden", "refused"):
        _break(trouble, here, server)
        with pytest.raises(ConfigError, match=r"wandb.mode=online: .* and wandb.fallback=false"):
            _logger("r", fallback=False)


@pytest.mark.slow
def test_without_fallback_the_run_ends_with_2(nursery: Nursery, tmp_path: Path, here: TcpProxy) -> None:
    """A run that must be online and cannot be is a mistake of the user's, told in one line."""
    here.down()
    assert nursery.run(_words(tmp_path, "strict", "wandb.fallback=false")) == 2
    lines = nursery.errors.read_text().splitlines()
    assert "wandb.fallback=false" in lines[-1]
    assert not any("Traceback" in line for line in lines)


def _break(trouble: str, proxy: TcpProxy, server: WandbServer) -> str:
    """Break what stands between W&B and its server; what the reason has to say."""
    if trouble == "refused":
        proxy.down()
        return "cannot be reached: "
    if trouble == "hanging":
        proxy.hang()
        return "has not answered for 2 s"
    if trouble == "wrong key":
        server.key = "f" * 40
        return "answered 401"
    if trouble == "forbidden":
        server.forbid("tester/double")
        return "403"
    server.fail("UpsertBucket", hang=60)
    return "Timed out initializing run"


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["down", "hang"])
def test_a_server_that_goes_away_blocks_nothing(outage: str, here: TcpProxy, caplog: pytest.LogCaptureFixture) -> None:
    """Rows, pictures and checkpoints are taken at once, finish() is bounded, all is on disk."""
    others = set(children(os.getpid()))  # servers of other tests
    logger = _logger("away", finish_timeout=2)
    logger.log_metrics({"x": 0.5}, step=0)
    getattr(here, outage)()
    begun = time.monotonic()
    for step in range(1, 50):
        logger.log_metrics({"x": step / 2}, step=step)
        logger.log_checkpoint(f"c{step}", "s3://b", {"m": (step, "ab" * 32)}, {})
    logger.log_image("picture", [[0, 255], [255, 0]], step=50)
    assert time.monotonic() - begun < 5
    service = set(children(os.getpid())) - others
    assert service
    begun = time.monotonic()
    logger.finish()
    assert time.monotonic() - begun < 2 + 6
    assert logger.record["finished"] is False
    assert "the next `rl-research sync` does it" in caplog.text
    assert [step for step, _ in wandb_rows(logger.dir)] == list(range(51))
    kinds = [record.WhichOneof("record_type") for record in wandb_records(logger.dir)]
    assert kinds.count("artifact") == 49
    assert "exit" in kinds
    assert not service & set(children(os.getpid())), "W&B's service outlives the run"


@pytest.mark.usefixtures("here")
def test_rows_that_the_server_refuses_are_noticed(server: WandbServer) -> None:
    """W&B's own finish() is content with a server that has taken no row; the record is not."""
    server.fail("file_stream", status=404)
    with _logger("refused") as logger:
        logger.log_metrics({"x": 1.0}, step=1)
    assert logger.record["finished"] is False


@pytest.mark.usefixtures("here")
def test_another_run_of_the_process_outlives_one_that_hangs(server: WandbServer) -> None:
    """A run that cannot finish does not take the service from another one, which arrives whole."""
    other = _logger("other")
    stuck = _logger("stuck", finish_timeout=1)
    server.fail("file_stream", hang=60, run="stuck")
    stuck.log_metrics({"x": 1.0}, step=1)
    stuck.finish()
    other.log_metrics({"x": 2.0}, step=2)
    other.finish()
    assert (stuck.finished, other.finished) == (False, True)
    assert server.run("other").steps == [2]
    server.heal()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_an_artifact_that_does_not_arrive_is_noticed(server: WandbServer) -> None:
    """With *wait* a failed upload is an error that can be retried, a refusal one that cannot."""
    files = {"m.zip": (3, "ab" * 32)}
    with _logger("art") as logger:
        refused = server.fail("CreateArtifact", status=403)
        with pytest.raises(LoggingError, match="403") as refusal:
            logger.log_checkpoint("c", "s3://b/x", files, {}, wait=20)
        assert not is_transient(refusal.value)
        refused.end()
        server.fail("CommitArtifact", hang=3, n=1)
        with pytest.raises(ConnectionError, match=r"artifact c: no answer for 1 s") as failure:
            logger.log_checkpoint("c", "s3://b/x", files, {}, wait=1)
        assert is_transient(failure.value)
        time.sleep(3)
        logger.log_checkpoint("c", "s3://b/x", files, {}, wait=20)
    assert [a.state for a in server.artifacts("c")] == ["COMMITTED"]
    assert logger.finished is True


def test_what_the_server_has_is_asked_for(here: TcpProxy) -> None:
    """Rows and media of an online run are known again from the server, whatever the local files say."""
    with _logger("again") as first:
        assert first.served() is not None
        assert not first.served().steps
        for step in range(1100):  # more than a page
            first.log_metrics({"x": step / 2}, step=step)
        first.log_image("picture", [[0, 255], [255, 0]], step=7)
    with _logger("again") as second:
        served = second.served()
    assert served is not None
    assert served.steps == frozenset(range(1100))
    assert served.media == {("picture", 7)}
    here.hang()
    with pytest.raises(NoAnswer, match="has not answered for 1 s"):
        WandbApi(here.url, timeout=1).logged("tester/double/again")


@pytest.mark.slow
def test_a_killed_online_run_goes_on_with_every_row_once(nursery: Nursery, tmp_path: Path, server: WandbServer) -> None:
    """Rows that a killed segment had on disk only are sent by the next one; those that arrived are not."""
    run_dir = tmp_path / "killed"
    segment = nursery.start(_words(tmp_path, "killed"))
    assert segment.wait_for_step(16)
    while not server.run("killed").steps:
        assert segment.wait_for_step(segment.step + 16)
    server.fail("file_stream", status=503)
    assert segment.wait_for_step(segment.step + 64)
    segment.kill(with_wandb=True)
    arrived, committed = _numbered(server, "killed"), steps_committed(run_dir)[-1]
    server.heal()
    end = f"experiment.total_timesteps={committed + 64}"
    assert nursery.run(_words(tmp_path, "killed", end)) == 0, nursery.errors.read_text()
    assert record_of(run_dir)["wandb"]["finished"] is True
    rows = _rows_of(run_dir)
    assert 0 < len(arrived) < len(rows)
    assert sorted(_numbered(server, "killed")) == rows


@pytest.mark.slow
def test_a_stopped_run_leaves_within_its_deadline_though_the_server_hangs(
    nursery: Nursery, tmp_path: Path, here: TcpProxy
) -> None:
    """SIGTERM while W&B hangs: committed, exit code 75 in time, every row on disk, delivery open."""
    run_dir = tmp_path / "stopped"
    segment = nursery.start(_words(tmp_path, "stopped", "checkpoint.deadline=15"))
    assert segment.wait_for_step(64)
    here.hang()
    assert segment.wait_for_step(segment.step + 64), "training waits for W&B"
    service = children(segment.pid)
    begun = time.monotonic()
    os.kill(segment.pid, signal.SIGTERM)
    assert segment.wait() == 75
    assert time.monotonic() - begun < 15
    assert service
    assert not [pid for pid in service if Path(f"/proc/{pid}").exists()]
    record = record_of(run_dir)
    assert (record["status"], record["wandb"]["finished"]) == ("interrupted", False)
    assert sorted(step for step, _ in wandb_rows(run_dir)) == _rows_of(run_dir)
