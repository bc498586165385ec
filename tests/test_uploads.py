"""Checkpoints on their way to storage beside training: nothing waits, is lost, or is told twice."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers import outcome, record_of, steps_committed, tiny, wandb_records

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Experiment, compose_experiment, load_config
from rl_research.errors import Interrupted, RLResearchError
from rl_research.runs.run import Run, open_run
from rl_research.tracking.logger import ExperimentLogger
from rl_research.training import stages
from rl_research.uploads.queue import Upload, UploadQueue, UploadRunner, background_uploads

ALL = [32, 64, 96]


class GatedFileSystem(MemoryFileSystem):
    """A store in memory that can be closed (writes of checkpoints wait) and can refuse."""

    protocol = "gated"
    url = ""  # another one for each test, which an upload of the one before does not know
    store: dict[str, Any] = {}  # noqa: RUF012  # as its base class has it
    pseudo_dirs = [""]  # noqa: RUF012
    gate = threading.Event()
    sent: list[str] = []  # noqa: RUF012
    refusals: dict[str, Exception] = {}  # noqa: RUF012

    def pipe_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Write bytes, when the gate is open."""
        self._pass(path)
        return super().pipe_file(path, *args, **kwargs)

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> Any:
        """Copy a file, when the gate is open."""
        self._pass(rpath)
        return super().put_file(lpath, rpath, *args, **kwargs)

    def _pass(self, path: str) -> None:
        for part, refusal in self.refusals.items():
            if part in path:
                raise refusal
        if "/step-" in path:
            assert self.gate.wait(60)
            self.sent.append(path.partition("checkpoints/")[2])


@pytest.fixture(autouse=True)
def gated(tmp_path: Path) -> Iterator[type[GatedFileSystem]]:
    """The gated store, empty, open and willing."""
    GatedFileSystem.url = f"gated://bucket/{tmp_path.name}"
    fsspec.register_implementation("gated", GatedFileSystem, clobber=True)
    GatedFileSystem.store.clear()
    GatedFileSystem.pseudo_dirs[:] = [""]
    GatedFileSystem.sent.clear()
    GatedFileSystem.refusals.clear()
    GatedFileSystem.gate.set()
    yield GatedFileSystem
    GatedFileSystem.refusals.clear()
    GatedFileSystem.gate.set()


Go = Callable[..., Path]


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """Train, score and announce as the flow does; the run folder."""

    def run(
        *overrides: str,
        then: Callable[[Run], object] = lambda run: None,
        through: UploadRunner = lambda upload, checkpoint: upload(checkpoint),
        runs: str = "runs",
    ) -> Path:
        words = [*tiny(tmp_path / runs, "mine", "wandb=disabled", "checkpoint.keep_last=9")]
        words.append(f"storage.url={GatedFileSystem.url}")
        config = load_config([*words, *overrides])
        with open_run(Experiment(config, tuple(words))) as opened:
            with background_uploads(opened, through) as uploads:
                last = stages.train_run(opened, uploads=uploads)
                then(opened)
                if stages.score_checkpoint(opened, last) is not None:
                    uploads.add(last)
            if config.storage.url is None:
                stages.announce_checkpoint(opened, last)
        return opened.dir

    return run


def _stored(gated: type[GatedFileSystem]) -> list[int]:
    found = checkpoints.list_checkpoints(checkpoints.remote_store(gated.url, {}, "mine"))
    for checkpoint in found:
        checkpoint.verify()
    return [checkpoint.global_step for checkpoint in found]


# ---------------------------------------------------------------- beside training


def test_training_does_not_wait_for_the_store(go: Go, gated: type[GatedFileSystem]) -> None:
    """While the store hangs, training comes to its end; when it answers again, everything arrives."""
    gated.gate.clear()
    seen: list[list[int]] = []

    def open_the_gate(run: Run) -> None:
        seen.extend([steps_committed(run.dir), _stored(gated)])
        gated.gate.set()

    folder = go(then=open_the_gate)
    assert seen == [ALL, []]
    assert _stored(gated) == ALL
    assert record_of(folder)["not_uploaded"] == []
    assert record_of(folder)["checkpoint"].startswith("gated://")
    assert checkpoints.find(record_of(folder)["checkpoint"]).manifest.final_scores


def test_after_scoring_the_manifest_alone_travels(go: Go, gated: type[GatedFileSystem]) -> None:
    """The final score reaches the store without a second copy of any file."""
    go()
    last = [path for path in gated.sent if path.startswith("step-000000096/")]
    assert last.count("step-000000096/manifest.json") >= 1
    assert len([p for p in last if p.endswith("/model.zip")]) == 1


def _made(folder: Path, step: int, mean: float | None) -> Checkpoint:
    scores = None if mean is None else {"mean": mean, "std": 0.0, "episodes": 1}
    return checkpoints.commit(folder, step, {"a.bin": b"%d" % step}, {"scores": scores})


@pytest.mark.parametrize(
    ("means", "skipped"),
    [
        ((0.0, 1.0, 2.0, 3.0), [2]),  # 1 is on its way; 2 and 3 wait; 4 comes, the best
        ((0.0, 9.0, 2.0, 3.0), [3]),
        ((0.0, None, None, None), [2]),
        ((0.0, 5.0, 5.0, 1.0), [2]),  # of equally good ones the newest is the best
    ],
)
def test_where_too_many_wait_the_oldest_but_the_best_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, means: tuple[float | None, ...], skipped: list[int]
) -> None:
    """The queue is bounded; what is skipped is said, and delivered when the run ends."""
    config = load_config(
        [*tiny(tmp_path, "mine", "wandb=disabled", "video.enabled=false"), f"storage.url={GatedFileSystem.url}"]
    )
    brought: list[int] = []
    gate, busy = threading.Event(), threading.Event()

    def slowly(upload: Upload, checkpoint: Checkpoint) -> None:
        busy.set()
        assert gate.wait(30)
        upload(checkpoint)
        brought.append(checkpoint.global_step)

    with open_run(Experiment(config)) as run, background_uploads(run, slowly) as uploads:
        for step, mean in enumerate(means, 1):
            uploads.add(_made(run.dir, step, mean))
            assert busy.wait(10)
        names = {checkpoints.folder_name(s) for s in (1, 2, 3, 4) if s not in skipped}
        assert uploads.in_use() == names
        said = [r.getMessage() for r in caplog.records if "fall behind" in r.getMessage()]
        gate.set()
    assert said == [f"uploads fall behind: step {step} is skipped for now" for step in skipped]
    assert sorted(brought) == [1, 2, 3, 4]


def test_retention_leaves_alone_what_is_on_its_way(go: Go, gated: type[GatedFileSystem]) -> None:
    """However slow the store, what has begun to travel stays on disk until it has arrived."""
    gated.gate.clear()
    kept: list[list[int]] = []

    def look(run: Run) -> None:
        kept.append(steps_committed(run.dir))
        gated.gate.set()

    few = ["checkpoint.keep_last=1", "checkpoint.keep_best=0", "checkpoint.every=16"]
    go(*few, "evaluation.every=0", then=look)
    assert kept == [[16, 80, 96]], "the first is on its way, the last two wait"
    assert _stored(gated) == [96]
    assert any(path.startswith("step-000000016") for path in gated.sent)


# ---------------------------------------------------------------- failures are no failure of the run


def test_a_refusal_is_a_warning(go: Go, gated: type[GatedFileSystem], caplog: pytest.LogCaptureFixture) -> None:
    """What the store refuses for good is said, with where the checkpoint is; the run ends well."""
    gated.refusals["step-000000064"] = PermissionError(13, "AccessDenied")
    folder = go()
    record = record_of(folder)
    assert (record["status"], record["not_uploaded"]) == ("finished", [64])
    assert _stored(gated) == [32, 96]
    assert record["checkpoint"].startswith("gated://")
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert any("step 64 is not uploaded" in line and "the right to list" in line for line in said)
    assert any(f"not uploaded to {gated.url}: step 64" in line for line in said)


@pytest.mark.slow
def test_what_hangs_is_given_up_in_time(go: Go, gated: type[GatedFileSystem]) -> None:
    """At the end the store gets ``storage.flush_timeout``; what it has not taken is in the record."""
    gated.gate.clear()
    began = time.monotonic()
    folder = go("storage.flush_timeout=1")
    assert time.monotonic() - began < 30
    assert record_of(folder)["status"] == "finished"
    assert record_of(folder)["not_uploaded"] == ALL
    assert record_of(folder)["checkpoint"] == record_of(folder)["local_checkpoint"]


def test_a_try_after_the_end_does_nothing(tmp_path: Path, gated: type[GatedFileSystem]) -> None:
    """An upload that wakes up when its run has ended touches neither store nor run folder."""
    words = ["wandb=disabled", f"storage.url={gated.url}", "storage.flush_timeout=0.2"]
    config = load_config(tiny(tmp_path, "mine", *words))
    late: list[tuple[Upload, Checkpoint]] = []
    asleep = threading.Event()

    def asleep_for_long(upload: Upload, checkpoint: Checkpoint) -> None:
        late.append((upload, checkpoint))
        asleep.set()
        time.sleep(3)

    with open_run(Experiment(config)) as run, background_uploads(run, asleep_for_long) as uploads:
        uploads.add(_made(run.dir, 1, None))
        assert asleep.wait(10)
    with pytest.raises(RLResearchError, match="ended before"):
        late[0][0](late[0][1])
    assert not [path for path in gated.sent if path.startswith("step-000000001/")]


def test_the_next_segment_delivers_what_is_left(go: Go, gated: type[GatedFileSystem]) -> None:
    """Started again, a run brings to its store what the segment before could not."""
    gated.refusals["/step-"] = ConnectionResetError(104, "reset by peer")
    assert record_of(go())["not_uploaded"] == ALL
    gated.refusals.clear()
    folder = go("experiment.total_timesteps=128")
    assert record_of(folder)["not_uploaded"] == []
    assert _stored(gated) == [*ALL, 128]


@pytest.mark.parametrize("text", ["", "[]", '{"checkpoints": 3}', '{"checkpoints": {"x": {}}}'])
def test_damaged_notes_cost_nothing(go: Go, gated: type[GatedFileSystem], text: str) -> None:
    """Without readable notes everything is asked again, and no file is sent twice."""
    folder = go()
    gated.sent.clear()
    (folder / "deliveries.json").write_text(text)
    go("experiment.total_timesteps=128")
    assert _stored(gated) == [*ALL, 128]
    assert not [path for path in gated.sent if not path.startswith("step-000000128/")]


# ---------------------------------------------------------------- signals


def test_a_stop_leaves_uploads_the_rest_of_the_deadline(go: Go, gated: type[GatedFileSystem]) -> None:
    """A run that is stopped while its store hangs is committed, and ends within its deadline."""
    gated.gate.clear()
    began = 0.0

    def stop(run: Run) -> None:
        nonlocal began
        began = time.monotonic()
        signal.raise_signal(signal.SIGTERM)
        run.stop.raise_if_requested()

    with pytest.raises(Interrupted):
        go("checkpoint.deadline=4", "storage.flush_timeout=500", then=stop)
    assert time.monotonic() - began < 4.5


def test_a_stop_while_the_end_waits_for_the_store(go: Go, gated: type[GatedFileSystem], tmp_path: Path) -> None:
    """A signal while only uploads are left interrupts the run, so that it is started again."""
    gated.gate.clear()

    def later(upload: Upload, checkpoint: Checkpoint) -> None:
        if checkpoint.global_step == 32:
            timer.start()
        upload(checkpoint)

    def term() -> None:
        while not (tmp_path / "runs/mine/scores.json").exists():
            time.sleep(0.1)
        time.sleep(0.5)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    timer = threading.Thread(target=term, daemon=True)
    with pytest.raises(Interrupted, match="before all was uploaded"):
        go("checkpoint.deadline=4", "storage.flush_timeout=500", through=later)
    assert record_of(tmp_path / "runs/mine")["status"] == "interrupted"
    assert record_of(tmp_path / "runs/mine")["not_uploaded"] == ALL


# ---------------------------------------------------------------- what W&B is told


def _artifacts(folder: Path) -> list[Any]:
    return [r.artifact for r in wandb_records(folder) if r.WhichOneof("record_type") == "artifact"]


def _told(folder: Path) -> list[set[str]]:
    return [set(artifact.aliases) for artifact in _artifacts(folder)]


def _means(folder: Path) -> Mapping[int, float]:
    found = checkpoints.local_checkpoints(folder)
    return {c.global_step: c.manifest.scores.mean for c in found}


def test_each_uploaded_checkpoint_is_told_once(go: Go) -> None:
    """A model artifact per checkpoint refers to the URL; the last is told with its final score."""
    folder = go("wandb=offline")
    artifacts = _artifacts(folder)
    steps = [next(int(a[5:]) for a in aliases if a[:5] == "step-") for aliases in _told(folder)]
    assert steps == ALL
    means, best = _means(folder), float("-inf")
    for step, aliases in zip(steps, _told(folder), strict=True):
        assert aliases == {"latest", f"step-{step}", *({"best"} if means[step] >= best else ())}
        best = max(best, means[step])
    last = artifacts[-1]
    assert (last.type, last.name) == ("model", "mine-checkpoint")
    metadata = json.loads(last.metadata)
    assert metadata["global_step"] == 96
    assert metadata["final_scores"]["mean"] == record_of(folder)["scores"]["mean"]
    assert metadata["storage_url"] == GatedFileSystem.url
    assert metadata["uri"].startswith(f"{GatedFileSystem.url}/mine/checkpoints/step-000000096")
    assert {"git", "flow_run_id", "sizes", "sha256", "bytes"} <= metadata.keys()
    manifest = checkpoints.local_checkpoints(folder)[-1]
    entries = {e.path: (e.size, e.digest) for e in last.manifest.contents}
    assert entries == {n: (s, f"sha256:{h}") for n, (s, h) in manifest.files.items()}
    assert all(e.ref.startswith("gated://") for e in last.manifest.contents)


def test_a_resumed_run_tells_no_step_twice(go: Go) -> None:
    """What one segment has told, neither a second segment nor another machine tells again."""
    folder = go("wandb=offline")
    told = _told(folder)
    go("wandb=offline", "experiment.total_timesteps=128")
    assert _told(folder)[:-1] == told
    assert "step-128" in _told(folder)[-1]
    elsewhere = go("wandb=offline", "experiment.total_timesteps=160", runs="elsewhere")
    assert ["step-160" in aliases for aliases in _told(elsewhere)] == [True]


def test_what_was_not_told_is_told_by_the_next_segment(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that arrived without W&B hearing of it is told of later, without being sent again."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "rl_research.tracking.logger.ExperimentLogger.log_checkpoint",
            lambda *_, **__: (_ for _ in ()).throw(ConnectionError("W&B is away")),
        )
        folder = go("wandb=offline")
    assert record_of(folder)["not_uploaded"] == []
    assert _told(folder) == []
    GatedFileSystem.sent.clear()
    go("wandb=offline", "experiment.total_timesteps=128")
    assert sorted(len(a & {"step-32", "step-64", "step-96", "step-128"}) for a in _told(folder)) == [1] * 4
    assert not [p for p in GatedFileSystem.sent if not p.startswith("step-000000128/")]


def test_a_wandb_server_that_is_away_holds_up_no_checkpoint(
    go: Go, gated: type[GatedFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in vain a few times, the server is not waited for: the artifact is left to the log on disk."""
    waited: list[float] = []
    log = ExperimentLogger.log_checkpoint

    def away(self: ExperimentLogger, *args: Any, wait: float = 0.0, **more: Any) -> None:
        waited.append(wait)
        if wait:
            raise ConnectionError("W&B has not taken the artifact")
        log(self, *args, **more)

    def persistently(upload: Upload, checkpoint: Checkpoint) -> None:
        for _ in range(5):
            with contextlib.suppress(ConnectionError):
                upload(checkpoint)
                return
        pytest.fail("it was tried for ever")

    monkeypatch.setattr(ExperimentLogger, "log_checkpoint", away)
    folder = go("wandb=offline", "checkpoint.every=0", through=persistently)
    assert [bool(seconds) for seconds in waited] == [True, True, True, False]
    assert len(_told(folder)) == 1
    assert _stored(gated) == [96]


def test_without_storage_the_last_checkpoint_is_told(go: Go) -> None:
    """A run without a storage.url refers to its last checkpoint in the run folder, once."""
    folder = go("wandb=offline", "storage.url=null")
    assert [("step-96" in aliases, "latest" in aliases) for aliases in _told(folder)] == [(True, True)]
    assert all(e.ref.startswith("file:///") for e in _artifacts(folder)[0].manifest.contents)
    assert "not_uploaded" not in record_of(folder) or record_of(folder)["not_uploaded"] == []
    go("wandb=offline", "storage.url=null")
    assert len(_told(folder)) == 1


# ---------------------------------------------------------------- another machine


def test_another_machine_goes_on_from_what_has_arrived(go: Go, gated: type[GatedFileSystem], tmp_path: Path) -> None:
    """Cut off in the middle of an upload, the store alone leads to the same bits."""
    whole = go("storage.url=null", runs="whole")
    gated.refusals["step-000000064/model.zip"] = ConnectionResetError(104, "reset by peer")
    gated.refusals["step-000000096"] = ConnectionResetError(104, "reset by peer")
    go()
    assert _stored(gated) == [32]
    gated.refusals.clear()
    shutil.rmtree(tmp_path / "runs")
    again = go(runs="elsewhere")
    assert outcome(again) == outcome(whole)
    assert _stored(gated) == ALL


def test_uploads_without_a_store_are_nothing(tmp_path: Path) -> None:
    """Where no storage.url is set, no thread is started and nothing is kept back."""
    with open_run(compose_experiment(tiny(tmp_path, "mine", "wandb=disabled"))) as run:
        with background_uploads(run) as uploads:
            uploads.add(_made(run.dir, 1, None))
            assert uploads.in_use() == set()
            assert "uploads" not in {thread.name for thread in threading.enumerate()}
        assert isinstance(uploads, UploadQueue)
