"""What sync says where the evidence, the server's answer or its own ledger is missing or wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import offline_runs
import pytest
from syncing import sync
from wandb_backend import ServedRun
from wandb_server import WandbServer

from rl_research.sync import is_verified


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare run."""
    folder = tmp_path_factory.mktemp("library")
    offline_runs.make(folder, "bare:bare:4")
    return folder / "runs"


@pytest.mark.usefixtures("server")
def test_without_evidence_nothing_counts_as_delivered(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wandb that says it has finished and leaves no log is not believed."""
    folder = offline_runs.copy(library / "bare", tmp_path / "bare")
    silent = tmp_path / "silent.py"
    silent.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "for log in sys.argv[sys.argv.index('-n') + 2:]:\n"
        "    pathlib.Path(log + '.synced').touch()\n"
        "    print('wandb: Finished syncing', log)\n"
    )
    silent.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(silent))
    outcome = sync(folder)["bare"]
    assert outcome.state == "unverified"
    assert "no evidence" in outcome.reason
    assert not is_verified(folder)
    assert not list(folder.rglob("*.synced"))
    monkeypatch.undo()


def test_a_server_without_the_question_still_gets_everything(
    library: Path, tmp_path: Path, server: WandbServer
) -> None:
    """Where nobody tells what the server has, its acknowledgements are what is believed."""
    folder = offline_runs.copy(library / "bare", tmp_path / "bare")
    before = server.fail("RunResumeStatus", status=400, n=1)
    outcome = sync(folder)["bare"]
    assert before.hits == 1
    assert (outcome.state, outcome.rows) == ("synced", 4)
    assert server.run("bare").steps == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 404, 413])
def test_rows_that_may_be_there_are_not_sent_on_a_guess(
    status: int, library: Path, tmp_path: Path, server: WandbServer
) -> None:
    """After an attempt whose answer was lost nothing is sent until the server says what it has."""
    folder = offline_runs.copy(library / "bare", tmp_path / "bare")
    server.fail("file_stream", lose_answer=True, after=1)
    assert sync(folder)["bare"].is_later
    assert server.run("bare").steps == [0, 1, 2, 3], "it has them, and nobody knows"
    server.heal()
    server.fail("RunResumeStatus", status=status)
    sent = server.requests["file_stream"]
    outcome = sync(folder)["bare"]
    assert outcome.state == "retryable"
    assert server.requests["file_stream"] == sent
    server.heal()
    assert sync(folder)["bare"].state == "synced"
    assert server.run("bare").steps == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_server_that_has_less_than_it_acknowledged_is_not_believed(
    library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is asked once more at the end; rows that it does not have then are sent again."""
    folder = offline_runs.copy(library / "bare", tmp_path / "bare")
    take = ServedRun.take
    monkeypatch.setattr(ServedRun, "take", lambda run, chunk: take(run, {**chunk, "files": {}}))
    outcome = sync(folder)["bare"]
    assert outcome.state == "partial"
    assert "acknowledged" in outcome.reason
    monkeypatch.setattr(ServedRun, "take", take)
    assert sync(folder)["bare"].state == "synced"
    assert server.run("bare").steps == [0, 1, 2, 3]


@pytest.mark.slow
def test_ledgers_that_cannot_be_read_are_written_anew(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """A torn or foreign ledger costs a question, no row and no error."""
    folder = offline_runs.copy(library / "bare", tmp_path / "bare")
    sync(folder)
    ledger = folder / "wandb" / "sync-bare.json"
    for content in ("", "{", "[]", '{"run_id": "bare", "segments": {"a": 1}}', '{"future": 1}'):
        ledger.write_text(content)
        assert sync(folder)["bare"].state == "synced"
        assert json.loads(ledger.read_text())["rows"] == 4
    assert server.run("bare").steps == [0, 1, 2, 3]
