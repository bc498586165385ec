"""What wandb keeps private and `tracking.wandb_private` relies on is as it was read, in wandb 0.31.0."""

from __future__ import annotations

import ast
import inspect
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import offline_runs
import pytest
import wandb
from offline_runs import log_of
from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
from wandb.sdk.interface.interface import InterfaceBase
from wandb.sdk.lib import urls
from wandb_server import WandbServer

from rl_research.sync import sending
from rl_research.sync.logs import scan
from rl_research.sync.sent_copy import Skipped, write_copy
from rl_research.system import countdown
from rl_research.tracking import WandbApi, wandb_private
from rl_research.tracking.wandb_log import has_exited, logged_artifacts, read_records
from rl_research.tracking.wandb_private import RESUME_STATUS, SyncCommand, SyncLog, parse_record

_PACKAGE = Path(wandb_private.__file__).parents[1]
_WANDB = Path(wandb.__file__).parent
_AGAIN = "read it in the new version, and correct rl_research/tracking/wandb_private.py"


def test_this_is_the_wandb_that_was_read() -> None:
    """Each minor release may change what is private, so one that nobody has read is not allowed."""
    assert metadata.version("wandb").startswith("0.31."), _AGAIN


@pytest.mark.parametrize(
    "phrase",
    [
        *(SyncLog.SENDING, SyncLog.SENT, SyncLog.HTTP_ERROR, SyncLog.NO_FILE, *SyncLog.HARMLESS),
        *(SyncLog.FILES.split("*")[0], "sync_path", "history_lines", "uploaded_len"),
        *(*SyncCommand.MARKS, "returned error"),
        *(line.strip() for line in RESUME_STATUS.splitlines() if line.strip() not in ("", "}")),
    ],
)
def test_wandbs_program_holds_the_phrases_that_are_read(phrase: str) -> None:
    """What tells a delivered run from a lost one, and the question that every server answers, are its own."""
    program = (_WANDB / "bin" / "wandb-core").read_bytes()
    assert phrase.encode() in program, f"wandb-core does not say {phrase!r} any more: {_AGAIN}"


def test_the_settings_that_are_set_exist() -> None:
    """Those of a run, those that an ended run does not take, and the bounds of a sync."""
    bounds = {name.removeprefix("WANDB_").lower() for name in SyncCommand.BOUNDS} - {"error_reporting"}
    named = {*wandb_private.quiet_settings(2), *wandb_private._OF_BEGINNINGS, *bounds}
    missing = named - set(wandb.Settings.model_fields)
    assert not missing, f"wandb has no settings {sorted(missing)} any more: {_AGAIN}"
    assert "WANDB_ERROR_REPORTING" in (_WANDB / "env.py").read_text()


def test_records_have_the_fields_that_are_read() -> None:
    """A row, a summary, a run, an artifact, files and the end are where they are looked for."""
    fields = {
        "": "history summary run artifact files stats output_raw exit num",
        "history": "item",
        "run": "run_id entity project host start_time config",
        "artifact": "metadata manifest run_id",
        "files": "files",
        "output_raw": "line",
        "exit": "exit_code",
    }
    for part, names in fields.items():
        record = parse_record(b"")
        message = getattr(record, part) if part else record
        missing = set(names.split()) - set(message.DESCRIPTOR.fields_by_name)
        assert not missing, f"W&B's record {part!r} has no {sorted(missing)} any more: {_AGAIN}"


def test_artifacts_are_taken_as_they_are_handed_on() -> None:
    """The run's interface and a manifest's entry have the parameters that are given to them."""
    given = {"run", "artifact", "aliases", "tags", *wandb_private._HOW}
    for method, more in ((InterfaceBase.publish_artifact, set()), (InterfaceBase.deliver_artifact, {"history_step"})):
        missing = (given | more) - set(inspect.signature(method).parameters)
        assert not missing, f"{method.__name__} does not take {sorted(missing)} any more: {_AGAIN}"
    artifact = wandb.Artifact("some", type="model")
    wandb_private.add_reference(artifact, "model.zip", "s3://bucket/model.zip", 5, "abc")
    entry = artifact.manifest.entries["model.zip"]
    assert isinstance(entry, ArtifactManifestEntry)
    assert (entry.ref, entry.size, entry.digest) == ("s3://bucket/model.zip", 5, "sha256:abc"), _AGAIN


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[wandb.Run]:
    """An offline run, and wandb's service."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    wandb_private.leave_inherited_service()
    settings = wandb.Settings(**wandb_private.quiet_settings(2))
    opened = wandb.init(mode="offline", id="private", dir=str(tmp_path), reinit="create_new", settings=settings)
    yield opened
    with suppress(OSError, SystemExit):
        opened.finish()
        wandb.teardown()


def test_a_run_offers_what_is_used_of_it(run: wandb.Run) -> None:
    """A log with the known header gets artifact and end; the service tells its parent and can be killed."""
    assert run.settings.sync_dir.endswith("-private-2"), f"x_sync_dir_suffix does nothing: {_AGAIN}"
    assert os.environ[wandb_private.SERVICE].split("-")[1] == str(os.getpid()), _AGAIN
    assert wandb_private.has_active_run()
    assert urls.forge_upstream_url(wandb_private.DEFAULT_SERVER) == wandb_private.SERVER_BEHIND_IT, _AGAIN
    assert WandbApi().base_url == str(wandb.setup().settings.base_url).rstrip("/"), f"another server is asked: {_AGAIN}"
    wandb_private.publish_artifact(run, wandb.Artifact("some", type="model", metadata={"a": 1}), ["latest"])
    run.finish()
    assert not wandb_private.has_active_run()
    log = Path(run.settings.sync_file)
    assert log.read_bytes().startswith(wandb_private.LOG_HEADER), f"the log's format has changed: {_AGAIN}"
    left = countdown(5)
    while left() > 0 and not has_exited(log):
        time.sleep(0.01)
    assert has_exited(log), f"the log has no end: {_AGAIN}"
    kinds = [record.WhichOneof("record_type") for record in read_records(log)]
    assert {"run", "artifact", "exit"} <= set(kinds)
    assert [dict(facts) for facts in logged_artifacts(log.parents[1], "private")] == [{"a": 1}]
    assert wandb_private.kill_service(), f"wandb's service is not found any more: {_AGAIN}"


def test_variables_for_runs_that_begin_do_not_change_one_that_has_ended() -> None:
    """The singleton's settings lack them meanwhile, and have them again afterwards."""
    settings = wandb.setup().settings
    before = settings.run_name
    settings.run_name = "begins"
    try:
        with wandb_private.settings_of_beginnings_ignored():
            assert wandb.setup().settings.run_name is None, _AGAIN
        assert wandb.setup().settings.run_name == "begins", _AGAIN
    finally:
        settings.run_name = before


def test_nothing_else_names_what_is_private() -> None:
    """Underscored names of a run or of wandb, its inner modules and ``x_`` settings stand in one file."""
    found = []
    for path in _PACKAGE.rglob("*.py"):
        if path.name == "wandb_private.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.attr.startswith("_") and node.value.id in ("wandb", "artifact")
                found += [(path.name, node.attr)] if private else []
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wandb."):
                found.append((path.name, str(node.module)))
            elif isinstance(node, ast.Constant) and str(node.value).startswith(("WANDB_X_", "x_disable")):
                found.append((path.name, str(node.value)))
    assert not found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with media and artifacts, and a bare one."""
    folder = tmp_path_factory.mktemp("library")
    offline_runs.make(folder, "rich:rich:10", "bare:bare:4")
    return folder / "runs"


@pytest.mark.slow
def test_the_log_of_this_wandb_says_what_is_read_from_it(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Requests and acknowledgements with rows, offset, files and end; errors with their status."""
    facts = scan(log_of(library, "rich"), library / "rich")
    good = write_copy(facts, tmp_path / "offline-run-1", Skipped(rows=2))
    other = scan(log_of(library, "bare"), library / "bare")
    bad = write_copy(other, tmp_path / "offline-run-2", Skipped())
    server.fail("file_stream", status=404, run="bare")
    sent = sending.send([good, bad], tmp_path / "attempt")
    evidence = sent.evidence[str(good)]
    assert (evidence.rows, evidence.complete) == (10, True)
    assert evidence.files == len(server.run("rich").files)
    assert evidence.errors == evidence.lost == []
    refused = sent.evidence[str(bad)]
    assert (refused.rows, refused.complete, refused.statuses) == (0, False, {404})
    assert "404" in refused.errors[0]
    assert sent.code == 0, "which is why its exit code is not asked"
    assert (tmp_path / "offline-run-2" / "run-bare.wandb.synced").exists(), "nor its marker"
    assert sent.urls["tester/sync/rich"] == f"{server.public_url}/tester/sync/runs/rich"
