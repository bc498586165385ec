"""W&B is told of checkpoints that arrive after their run has ended: once, and of nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import offline_runs
import pytest
from helpers import environment, record_of, steps_committed, tiny, wandb_records
from wandb_backend import ServedRun
from wandb_server import WandbServer

from rl_research import checkpoints
from rl_research.config import compose_experiment
from rl_research.errors import ConfigError
from rl_research.flows.upload import upload
from rl_research.runs.lease import FOR_UPLOAD, leased_folder
from rl_research.runs.run import open_run
from rl_research.sync import Policy, find, sync_runs as sync
from rl_research.training import stages
from rl_research.uploads import announce_late, pending, unannounced
from rl_research.uploads.run_storage import RunStorage

Train = Callable[..., Path]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server of the test's own, known to W&B here."""
    import wandb

    with WandbServer() as running:
        for name, value in offline_runs.QUICK.items():
            monkeypatch.setenv(name, value)
        running.adopt(monkeypatch)
        yield running
        wandb.teardown()


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train, score and end a run whose checkpoints have not reached its store; its folder."""

    def run(*overrides: str, fails: bool = False) -> Path:
        words = tiny(tmp_path / "runs", "mine", f"storage.url='{tmp_path}/store'", *overrides)
        try:
            with open_run(compose_experiment(words)) as opened:
                stages.score_checkpoint(opened, stages.train_run(opened))
                if fails:
                    raise ZeroDivisionError("a bug at the very end")
        except ZeroDivisionError:
            assert fails
        return opened.dir

    return run


def _storage_of(folder: Path) -> RunStorage:
    (storage,) = pending.runs_with_storage(folder.parent)
    return storage


def _bring(folder: Path) -> RunStorage:
    """Bring everything to the store, and tell nobody."""
    storage = _storage_of(folder)
    for checkpoint in checkpoints.local_checkpoints(folder):
        storage.upload(checkpoint, lambda: None)
    return storage


def _facts(run: ServedRun) -> dict[str, Any]:
    """What of a run on the server must stay as it was."""
    config = json.loads(json.dumps(run.raw_config))
    config["_wandb"]["value"].pop("t", None)  # wandb's own telemetry
    own = ("_step", "_runtime", "_wandb")  # wandb's: dropped by a resume, and its clock goes on
    summary = {key: value for key, value in run.summary.items() if key not in own}
    return {
        "rows": run.rows, "summary": summary, "config": config, "state": run.state,
        "exit code": run.exit_code, "name": run.display_name, "tags": run.tags, "group": run.group,
        "job type": run.job_type, "notes": run.notes, "output": run.output,
    }  # fmt: skip


def _told(server: WandbServer) -> dict[int, dict[str, Any]]:
    """The artifacts that the server has: step -> aliases, metadata and references; none twice."""
    found = server.artifacts("mine-checkpoint")
    assert {(a.type, a.state) for a in found} <= {("model", "COMMITTED")}
    told = {
        int(a.metadata["global_step"]): {
            "aliases": set(a.aliases),
            "uri": a.metadata["uri"],
            "refs": {name: entry["ref"] for name, entry in a.entries.items()},
            "sha256": a.metadata["sha256"],
            "scores": a.metadata.get("final_scores"),
        }
        for a in found
    }
    assert len(told) == len(found)
    return told


def _assert_all_told(server: WandbServer, folder: Path, store: Path) -> None:
    local = {c.global_step: c for c in checkpoints.local_checkpoints(folder)}
    told = _told(server)
    assert sorted(told) == sorted(local)
    best = max(local.values(), key=lambda c: (c.mean, c.global_step)).global_step
    for step, one in told.items():
        address = f"file://{store}/mine/checkpoints/step-{step:09d}"
        assert one["uri"] == address
        assert one["refs"] == {name: f"{address}/{name}" for name in local[step].files}
        assert one["sha256"] == {name: digest for name, (_, digest) in local[step].files.items()}
        latest = {"latest"} if step == max(local) else set()
        assert one["aliases"] == {f"step-{step}", *latest, *({"best"} if step == best else ())}
    assert told[max(local)]["scores"]["episodes"] == 4


def _segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("wandb/*run-*") if not path.is_symlink())


def _sync(folder: Path) -> str:
    (outcome,) = sync(find([folder]), Policy())
    return outcome.line()


# ---------------------------------------------------------------- offline


@pytest.mark.slow  # flow runs against a real API
@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("synced", [True, False])
def test_an_offline_run_gets_a_segment_more(train: Train, server: WandbServer, tmp_path: Path, synced: bool) -> None:
    """The hourly flow adds the artifacts and nothing else, whether or not the run was synced before."""
    folder = train("wandb.mode=offline", "wandb.name=mine", "wandb.tags=[a]")
    if synced:
        assert "synced" in _sync(folder)
    before, record = _segments(folder), record_of(folder)
    facts = _facts(server.run("mine")) if synced else {}
    runtime = server.run("mine").summary["_runtime"] if synced else None
    rows = upload(str(folder.parent))
    assert [row.outcome for row in rows] == ["delivered"] * len(steps_committed(folder))
    (added,) = set(_segments(folder)) - set(before)
    assert upload(str(folder.parent)) == []
    assert len(_segments(folder)) == len(before) + 1
    assert not list(folder.glob("wandb/.reopened*"))
    assert record_of(folder)["wandb"]["dir"] == record["wandb"]["dir"]
    line = _sync(folder)
    assert line.startswith("synced"), line
    assert f"{len(rows)} artifacts" in line
    _assert_all_told(server, folder, tmp_path / "store")
    run = server.run("mine")
    assert (run.state, run.exit_code) == ("finished", 0)
    assert _facts(run) == (facts or _facts(run))
    assert run.steps == sorted(set(run.steps))
    assert run.summary["_runtime"] == runtime or not synced
    assert run.summary["final/episodes"] == 4
    assert _sync(folder).startswith("unchanged")
    ledger = offline_runs.ledger_of(folder, "mine")
    assert ledger["segments"][added] == {
        "size": (folder / "wandb" / added / "run-mine.wandb").stat().st_size,
        "rows": 0,
        "delivered": True,
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from rl_research.uploads import announcement, pending, run_storage

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

moment = sys.argv[2]
if moment == "within":
    log, logged = announcement._log_artifact, []
    announcement._log_artifact = lambda *args, **more: die() if logged else logged.append(log(*args, **more))
elif moment == "before":
    Path.rename = die
elif moment == "after":
    run_storage.UploadLedger.note = die
(found,) = pending.runs_with_storage(Path(sys.argv[1]))
with pending.leased_for_upload(found):
    announcement.announce_late(found, announcement.unannounced(found))
"""


def _tell_and_die(folder: Path, moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder.parent), moment],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == (-9 if moment else 0), done.stderr


@pytest.mark.slow
def test_killed_at_any_moment_it_is_told_once(train: Train, server: WandbServer, tmp_path: Path) -> None:
    """SIGKILL within the segment, before it takes its place, and before the note: one segment at the end."""
    folder = train("wandb.mode=offline")
    assert _sync(folder).startswith("synced")
    facts, before = _facts(server.run("mine")), _segments(folder)
    storage = _bring(folder)
    for moment in ("within", "before"):
        _tell_and_die(folder, moment)
        assert _segments(folder) == before
        assert _sync(folder).startswith("unchanged"), "nothing that looks like a crashed run"
        assert len(unannounced(storage)) == len(steps_committed(folder))
    for moment in ("after", "after", ""):
        _tell_and_die(folder, moment)
        assert len(_segments(folder)) == len(before) + 1
    assert unannounced(storage) == []
    assert _sync(folder).startswith("synced")
    _assert_all_told(server, folder, tmp_path / "store")
    assert _facts(server.run("mine")) == facts


@pytest.mark.slow
@pytest.mark.parametrize("what", ["moved", "pruned"])
def test_a_folder_that_was_moved_or_pruned_is_told_all_the_same(
    train: Train, server: WandbServer, tmp_path: Path, what: str
) -> None:
    """Elsewhere, or without its W&B logs, the run gets its segment, and the next sync finds it."""
    folder = train("wandb.mode=offline")
    assert _sync(folder).startswith("synced")
    facts = _facts(server.run("mine"))
    if what == "moved":
        (tmp_path / "elsewhere").mkdir()
        folder = folder.rename(tmp_path / "elsewhere" / "mine")
    else:
        shutil.rmtree(folder / "wandb")
    storage = _bring(folder)
    announce_late(storage, unannounced(storage))
    assert not (tmp_path / "runs" / "mine").exists() or what == "pruned"
    assert _sync(folder).startswith("synced")
    _assert_all_told(server, folder, tmp_path / "store")
    assert _facts(server.run("mine")) == facts


@pytest.mark.slow
def test_latest_stays_with_the_newest(train: Train, server: WandbServer) -> None:
    """A checkpoint that arrives after a newer one was told of does not become W&B's `latest`."""
    folder = train("wandb.mode=offline")
    storage, (*older, newest) = _storage_of(folder), checkpoints.local_checkpoints(folder)
    for checkpoints_now in ([newest], older):
        for checkpoint in checkpoints_now:
            storage.upload(checkpoint, lambda: None)
        announce_late(storage, unannounced(storage))
    assert _sync(folder).startswith("synced")
    assert "latest" in _told(server)[newest.global_step]["aliases"]
    assert not any("latest" in _told(server)[c.global_step]["aliases"] for c in older)


@pytest.mark.slow
def test_what_the_environment_says_of_other_runs_stays_out(
    train: Train, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WANDB_NAME, _TAGS, _PROJECT, … of the flow's process do not get into the run that has ended."""
    folder = train("wandb.mode=offline", "wandb.name=mine", "wandb.tags=[a]", "wandb.project=here")
    assert _sync(folder).startswith("synced")
    facts = _facts(server.run("mine"))
    for name in ("NAME", "TAGS", "NOTES", "RUN_GROUP", "JOB_TYPE", "PROJECT", "RUN_ID"):
        monkeypatch.setenv(f"WANDB_{name}", "foreign")
    monkeypatch.setenv("WANDB_MODE", "online")
    server.adopt(monkeypatch)
    storage = _bring(folder)
    announce_late(storage, unannounced(storage))
    assert _sync(folder).startswith("synced")
    assert _facts(server.run("mine")) == facts
    assert server.run_ids == ["mine"]


# ---------------------------------------------------------------- of which runs


@pytest.mark.slow
def test_a_failed_run_stays_failed_and_one_that_goes_on_tells_itself(train: Train, server: WandbServer) -> None:
    """A run that failed is told of and fails again; an interrupted one is left to its next segment."""
    folder = train("wandb.mode=offline", fails=True)
    storage = _bring(folder)
    record = record_of(folder)
    for status in ("interrupted", "running"):
        (folder / "run.json").write_text(json.dumps({**record, "status": status}))
        assert unannounced(storage) == []
    (folder / "run.json").write_text(json.dumps(record))
    announce_late(storage, unannounced(storage))
    assert _sync(folder).startswith("synced")
    assert len(_told(server)) == len(steps_committed(folder))
    assert (server.run("mine").state, server.run("mine").exit_code) == ("failed", 1)


def test_a_run_without_wandb_has_nobody_to_tell(train: Train) -> None:
    """With ``wandb=disabled`` there is nothing to do."""
    storage = _bring(train("wandb=disabled"))
    assert unannounced(storage) == []
    assert not list(storage.folder.glob("wandb/**/*.wandb"))


# ---------------------------------------------------------------- online

ONLINE = ("wandb.mode=online", "wandb.init_timeout=8", "wandb.name=mine", "wandb.tags=[a]")


@pytest.mark.slow  # flow runs against a real API
@pytest.mark.usefixtures("prefect_api")
def test_an_online_run_is_resumed_for_it(train: Train, server: WandbServer, tmp_path: Path) -> None:
    """The server has the artifacts when the flow ends, the run as it was; away, the next hour does it."""
    folder = train(*ONLINE)
    facts, before = _facts(server.run("mine")), _segments(folder)
    assert facts["state"] == "finished"
    outage = server.fail("*", status=503)
    state = upload(str(folder.parent), return_state=True)
    assert state.is_failed()
    assert "W&B is not told" in str(state.message)
    outage.end()
    refused = server.fail("CreateArtifact", status=503)
    assert upload(str(folder.parent), return_state=True).is_failed()
    assert server.run("mine").state == "finished"
    refused.end()
    assert upload(str(folder.parent)) == []
    _assert_all_told(server, folder, tmp_path / "store")
    assert _facts(server.run("mine")) == facts
    told, asked = _told(server), server.requests.total()
    assert upload(str(folder.parent)) == []
    assert server.requests.total() == asked
    assert _told(server) == told
    assert _segments(folder) == before
    assert not list(folder.glob("wandb/.reopened*"))
    assert find([folder]) == [], "a sync has nothing to do"


@pytest.mark.slow
def test_an_online_run_killed_meanwhile_is_finished_by_the_next_hour(
    train: Train, server: WandbServer, tmp_path: Path
) -> None:
    """SIGKILL between W&B's answer and the note: the next round tells again, and nothing is there twice."""
    folder = train(*ONLINE)
    facts = _facts(server.run("mine"))
    _bring(folder)
    for moment in ("within", "after", ""):
        _tell_and_die(folder, moment)
    _assert_all_told(server, folder, tmp_path / "store")
    assert _facts(server.run("mine")) == facts


def test_it_takes_the_run(train: Train) -> None:
    """A run that a process has open is not told of from outside."""
    storage = _bring(train("wandb.mode=offline"))
    with leased_folder(storage.folder), pytest.raises(ConfigError), pending.leased_for_upload(storage):
        pass
    with pending.leased_for_upload(storage):
        assert (storage.folder / ".lease").read_text().startswith(FOR_UPLOAD)
    assert not [r for r in wandb_records(storage.folder) if r.WhichOneof("record_type") == "artifact"]
