"""The parts of sync by themselves: finding runs, reading and writing logs, knowing rows again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import offline_runs
import pytest
from helpers import environment
from offline_runs import log_of

from rl_research.sync import ledger, local_runs, temporary
from rl_research.sync.logs import scan, timestamps
from rl_research.sync.sent_copy import Skipped, Unclear, rows_delivered, skipped_parts, write_copy
from rl_research.system import Locked
from rl_research.tracking import RunThere
from rl_research.tracking.wandb_log import LogWriter, payloads, read_records
from rl_research.tracking.wandb_private import LOG_HEADER


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of several blocks, and one of two segments."""
    folder = tmp_path_factory.mktemp("library")
    offline_runs.make(folder, "bare:many:800", "bare:two:5", "bare:two:4")
    return folder / "runs"


def _segment(folder: Path, name: str, run_id: str, size: int = 9) -> Path:
    segment = folder / name
    segment.mkdir(parents=True)
    (segment / f"run-{run_id}.wandb").write_bytes(b"x" * size)
    return segment


def test_runs_are_found_wherever_they_lie(tmp_path: Path) -> None:
    """Run folders, plain W&B folders, segments by themselves, names with spaces; each once, oldest first."""
    runs = tmp_path / "meine Läufe"
    _segment(runs / "a/wandb", "offline-run-20260102_000000-a-2", "a")
    _segment(runs / "a/wandb", "offline-run-20260101_000000-a", "a")
    _segment(runs / "b/wandb", "offline-run-20260101_000000-b", "b")
    _segment(runs / "b/wandb", "run-20251231_000000-b", "b")
    _segment(runs / "c/wandb", "run-20260101_000000-c", "c")
    _segment(tmp_path / "logs/wandb", "offline-run-20260101_000000-d", "d")
    _segment(tmp_path / "logs/wandb", "offline-run-20260101_000001-my-off", "my-off")
    _segment(runs / "a/checkpoints/step-1/wandb", "offline-run-20260101_000000-no", "no")
    (runs / "a/run.json").write_text("{}")
    found = {run.run_id: run for run in local_runs.find([runs, tmp_path / "logs", runs / "a"])}
    assert sorted(found) == ["a", "b", "d", "my-off"]
    assert list(found["a"].logs) == [
        "offline-run-20260101_000000-a", "offline-run-20260102_000000-a-2",
    ]  # fmt: skip
    assert list(found["b"].logs) == ["run-20251231_000000-b", "offline-run-20260101_000000-b"]
    assert sorted(r.run_id for r in local_runs.find([runs], include_online=True)) == ["a", "b", "c"]
    (one,) = local_runs.find([tmp_path / "logs/wandb/offline-run-20260101_000000-d"])
    assert one.run_id == "d"


def _payloads(log: Path) -> list[bytes]:
    with log.open("rb") as file:
        return [payload for payload, _ in payloads(file, len(LOG_HEADER))]


def test_a_log_is_written_as_wandb_writes_it(library: Path, tmp_path: Path) -> None:
    """Records of every length, over the ends of blocks, come back as they went in."""
    chance = random.Random(4)
    sizes = [0, 1, 32753, 32754, 32755, 32761, 65522, 100_000, *(chance.randrange(40_000) for _ in range(60))]
    wanted = [chance.randbytes(size) for size in sizes]
    log = tmp_path / "log"
    with log.open("wb") as file:
        writer = LogWriter(file)
        for payload in wanted:
            writer.write(payload)
    assert _payloads(log) == wanted
    again = tmp_path / "again"
    original = log_of(library, "many")
    with again.open("wb") as file:
        writer = LogWriter(file)
        for payload in _payloads(original):
            writer.write(payload)
    assert again.read_bytes() == original.read_bytes()


def test_cut_off_is_told_from_damaged(library: Path, tmp_path: Path) -> None:
    """Wherever a log ends, or in zeros, it was cut off; a byte changed in what is there is damage."""
    whole = log_of(library, "many").read_bytes()
    log = tmp_path / "run-x.wandb"
    chance = random.Random(6)
    for cut in [0, 3, 7, 9, 32768, 32770, *(chance.randrange(len(whole)) for _ in range(60))]:
        for tail in (b"", bytes(5000)):
            log.write_bytes(whole[:cut] + tail)
            if cut >= 7 or not tail:
                assert scan(log, tmp_path).damaged_at is None, (cut, len(tail))
    told = 0
    for place in (chance.randrange(14, len(whole)) for _ in range(50)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        log.write_bytes(damaged)
        facts = scan(log, tmp_path)
        assert not facts.exited
        told += facts.damaged_at is not None and facts.damaged_at <= place
    assert told > 40, "all but a length that was changed to one beyond the end"


def test_a_copy_is_whole_and_leaves_out_what_is_there(library: Path, tmp_path: Path) -> None:
    """However a log was cut, its copy has every whole row but the first ones, and an end."""
    whole = log_of(library, "many").read_bytes()
    log = tmp_path / "run-many.wandb"
    log.write_bytes(whole[: len(whole) * 2 // 3])
    facts = scan(log, tmp_path)
    assert 0 < facts.rows < 800
    assert not facts.exited
    copy = write_copy(facts, tmp_path / "offline-run-1", Skipped(rows=100))
    kinds = [record.WhichOneof("record_type") for record in read_records(copy)]
    assert kinds.count("history") == facts.rows - 100
    assert kinds[-1] == "exit"
    assert list(timestamps(copy)) == list(timestamps(log))[100:]


def test_rows_are_known_again_by_the_last_of_them(library: Path) -> None:
    """What the server has is found in the logs, over segments; what does not fit is not guessed."""
    logs = [scan(path, library / "two") for path in sorted((library / "two").rglob("*/run-two.wandb"))]
    logs = [facts for facts in logs if "latest-run" not in facts.log.parts]
    logs.sort(key=lambda facts: facts.start)
    times = [at for facts in logs for at in timestamps(facts.log)]
    assert len(times) == 9
    for count in range(1, 10):
        assert rows_delivered(logs, RunThere(rows=count, last_row_at=times[count - 1])) == count
    assert [part.rows for part in skipped_parts(logs, RunThere(rows=7, last_row_at=times[6]))] == [5, 2]
    assert rows_delivered(logs, RunThere()) == 0
    assert rows_delivered(logs, RunThere(rows=50, last_row_at=times[0] - 5)) == 0, "of others, before"
    assert rows_delivered(logs, RunThere(rows=13, last_row_at=times[3])) == 4, "others before ours"
    for there in (
        RunThere(rows=12, last_row_at=times[-1] + 5),
        RunThere(rows=2, last_row_at=times[6]),
        RunThere(rows=10),
    ):
        with pytest.raises(Unclear):
            rows_delivered(logs, there)


def test_a_ledger_survives_what_disks_do(tmp_path: Path) -> None:
    """It is written whole, read as written, and an unknown field of a later version is no reason to fail."""
    known = ledger.Ledger("x", state="synced", segments={"a": ledger.Segment(1, 2, True)})
    ledger.write(tmp_path, known)
    assert ledger.read(tmp_path, "x") == known
    path = ledger.path_in(tmp_path, "x")
    path.write_text(path.read_text().replace("{", '{"later": 1,', 1))
    assert ledger.read(tmp_path, "x") == known
    with (
        ledger.lock(tmp_path, "x"),
        pytest.raises(Locked, match=f"process {os.getpid()} on "),
        ledger.lock(tmp_path, "x"),
    ):
        pass


@pytest.mark.parametrize(("finished", "found"), [(True, []), (False, ["on"]), (None, ["on"])])
def test_an_online_run_that_owes_rows_is_found(tmp_path: Path, finished: bool | None, found: list[str]) -> None:
    """An online run is looked at unasked only if it says, or could not say, that not all has arrived."""
    segment = tmp_path / "runs" / "on" / "wandb" / "run-20260101_000000-on"
    segment.mkdir(parents=True)
    (segment / "run-on.wandb").write_bytes(b":W&B")
    record = {"run_id": "on", "wandb": {"mode": "online", "finished": finished}}
    (tmp_path / "runs" / "on" / "run.json").write_text(json.dumps(record))
    assert [run.run_id for run in local_runs.find([tmp_path / "runs"])] == found
    assert [run.run_id for run in local_runs.find([tmp_path / "runs"], include_online=True)] == ["on"]


LOOK = """
import collections, json, sys
folder, touched = sys.argv[1], collections.Counter()

def note(event, arguments):
    if event in ("open", "os.scandir", "os.listdir") and str(arguments[0]).startswith(folder):
        touched[event] += 1

sys.addaudithook(note)
from rl_research.cli import main
code = main(["sync", folder])
heavy = {"wandb", "torch", "numpy", "prefect", "fsspec", "hydra", "google.protobuf"} & set(sys.modules)
print(json.dumps({"code": code, "touched": touched, "heavy": sorted(heavy)}))
"""


def test_a_look_at_synced_runs_opens_their_ledgers_and_nothing_else(tmp_path: Path) -> None:
    """A file and two listings a run, no log, and nothing heavy imported: ten thousand take a second."""
    for number in range(200):
        home = tmp_path / f"run{number:03d}"
        log = _segment(home / "wandb", f"offline-run-20260101_000000-{home.name}", home.name)
        (home / "run.json").write_text("{}")
        (home / "checkpoints").mkdir()
        known = ledger.Segment(9, rows=1, delivered=True)
        ledger.write(home / "wandb", ledger.Ledger(home.name, state="synced", segments={log.name: known}))
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    told, found = done.stdout.splitlines()
    assert told == "unchanged  200 runs, which had arrived before"
    assert json.loads(found) == {
        "code": 0, "touched": {"open": 200, "os.scandir": 401}, "heavy": [],
    }  # fmt: skip


def test_a_folder_that_a_sweep_takes_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another sync may see it in that moment and remove it; this one goes on in one that is there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    flock, swept = fcntl.flock, []

    def late(file: IO[str], how: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            temporary._sweep()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with temporary.temporary_folder() as folder:
        assert [folder] == list(tmp_path.iterdir()) != swept
        temporary._sweep()
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_lock_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its process could not lock it, nobody can tell whether it is alive; sweeps spare it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with ExitStack() as stack:
        with monkeypatch.context() as without_locks:
            without_locks.setattr(fcntl, "flock", refused)
            folder = stack.enter_context(temporary.temporary_folder())
        temporary._sweep()
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []
