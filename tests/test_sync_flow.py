"""The flow that syncs: failures tried again, a table, and links that become true."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import offline_runs
import pytest
from prefect import flow
from prefect.artifacts import Artifact, create_link_artifact
from servers import Server
from wandb_server import WandbServer

from rl_research.flows.sync import sync

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]  # drives Prefect's own server


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small runs."""
    folder = tmp_path_factory.mktemp("library")
    offline_runs.make(folder, "bare:one:5", "bare:two:6", "rich:three:7")
    return folder / "runs"


def _table() -> list[dict[str, Any]]:
    artifact = Artifact.get("sync")
    assert artifact is not None
    found: list[dict[str, Any]] = json.loads(str(artifact.data))
    return found


def test_what_may_mend_is_tried_again(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """A run that fails for now is tried again, alone; the flow ends well, and so do the others."""
    folder = offline_runs.copy(library, tmp_path / "runs")
    server.fail("file_stream", status=503, run="two", n=2)
    state = sync([str(folder)], return_state=True)
    assert (state.name, state.message) == ("Completed", "3 synced")
    assert server.run("two").steps == list(range(6))
    assert {row["run_id"]: row["state"] for row in _table()} == dict.fromkeys(("one", "two", "three"), "synced")
    asked = server.requests.total()
    again = sync([str(folder)], return_state=True)
    assert again.message == "3 unchanged"
    assert server.requests.total() == asked


def test_the_next_flow_picks_up_what_is_due(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """What stays away ends the flow well and waits; a blocked run ends it badly, once."""
    folder = offline_runs.copy(library, tmp_path / "runs")
    server.fail("file_stream", status=503, run="two")
    server.fail("file_stream", status=403, run="one")
    state = sync([str(folder)], return_state=True)
    assert state.is_failed()
    assert "one" in str(state.message)
    assert "403" in str(state.message)
    ledger = folder / "two" / "wandb" / "sync-two.json"
    told = json.loads(ledger.read_text())
    assert told["attempts"] == 3
    assert told["next_try"] > time.time() + 60
    again = sync([str(folder)], return_state=True)
    assert again.is_completed(), "a blocked run fails the flow once"
    assert again.message == "1 blocked, 1 unchanged, 1 waiting"
    blocked = folder / "one" / "wandb" / "sync-one.json"
    blocked.write_text(json.dumps({**json.loads(blocked.read_text()), "next_try": 0}))
    again = sync([str(folder)], return_state=True)
    assert again.is_completed(), "also where it was due, and was refused once more"
    assert json.loads(blocked.read_text())["attempts"] == 2
    server.heal()
    for path in (ledger, blocked):
        path.write_text(json.dumps({**json.loads(path.read_text()), "next_try": 0}))
    assert sync([str(folder)], return_state=True).message == "1 unchanged, 2 synced"
    assert server.run("one").steps == list(range(5))
    assert server.run("two").steps == list(range(6))


def test_the_link_of_the_training_flow_becomes_true(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """The flow run that trained shows the page instead of the folder."""

    @flow
    def trains() -> str:
        from prefect import runtime

        create_link_artifact(link="file:///here", key="wandb-one", link_text="offline")
        return str(runtime.flow_run.id)

    flow_run_id = trains()
    folder = offline_runs.copy(library / "one", tmp_path / "one")
    (folder / "run.json").write_text(json.dumps({"flow_run_id": flow_run_id, "wandb": {"url": None}}))
    sync([str(folder)])
    artifact = Artifact.get("wandb-one")
    assert artifact is not None
    assert artifact.flow_run_id == UUID(flow_run_id)
    assert artifact.data == f"[W&B run one (synced)]({server.public_url}/tester/sync/runs/one)"


def test_a_place_that_is_refused_fails_the_flow_and_no_other_place(
    library: Path, tmp_path: Path, s3: Server, server: WandbServer
) -> None:
    """What the store says stands in the flow's state and in the table; runs elsewhere are delivered."""
    folder = offline_runs.copy(library / "one", tmp_path / "one")
    where = [str(folder), s3.url("no-such-bucket/runs")]
    state = sync(where, overrides=s3.overrides("x")[1:], return_state=True)
    assert state.is_failed()
    assert "no-such-bucket" in str(state.message)
    assert server.run("one").steps == list(range(5))
    assert {row["state"] for row in _table()} == {"synced", "blocked"}
