"""Contents of a W&B log: whose rows, how many, and the files that it promises."""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_research.tracking import is_damaged, parse_record, read_records

_OURS = "-off"  # how a failed online start goes on; see `wandb_run.open_run`
_MD5 = 24  # characters of an MD5 in base64, as W&B's manifests write it


@dataclass
class LogFacts:
    """Contents of one segment's log."""

    log: Path
    entity: str = ""
    project: str = ""
    run_id: str = ""
    host: str = ""
    start: float = 0.0
    rows: int = 0
    stats: int = 0
    lines: int = 0  # of the console
    artifacts: int = 0
    files: int = 0
    exited: bool = False
    damaged_at: int | None = None
    size: int = 0
    payload: int = 0  # bytes of artifacts and media to be uploaded
    places: dict[str, str] = field(default_factory=dict)  # of files: as the log has it -> now
    lost: list[str] = field(default_factory=list)


def scan(log: Path, home: Path) -> LogFacts:
    """Read *log* once; files that are not where it says are looked for below *home*."""
    facts = LogFacts(log, size=log.stat().st_size)
    reading = read_records(log)
    while True:
        try:
            record = parse_record(next(reading))
        except StopIteration as end:
            if end.value < facts.size and is_damaged(log, end.value):
                facts.damaged_at = end.value
            return facts
        if (note := _NOTES.get(record.WhichOneof("record_type"))) is not None:
            note(facts, record, home)


def timestamps(log: Path) -> Iterator[float | None]:
    """When each row of *log* was logged, by which a row is known again."""
    for payload in read_records(log):
        record = parse_record(payload)
        if record.WhichOneof("record_type") == "history":
            yield next(
                (
                    float(json.loads(item.value_json))
                    for item in record.history.item
                    if "_timestamp" in (item.key, *item.nested_key[:1])
                ),
                None,
            )


def _note_run(facts: LogFacts, record: Any, home: Path) -> None:  # noqa: ARG001  # one form for all
    run = record.run
    facts.entity, facts.project, facts.host = run.entity, run.project, run.host
    facts.run_id = run.run_id
    facts.start = run.start_time.seconds + run.start_time.nanos / 1e9
    for item in run.config.update:
        if "run_id" in (item.key, *item.nested_key[:1]):
            named = json.loads(item.value_json)
            if run.run_id == f"{named}{_OURS}":
                facts.run_id = named


def _note_row(facts: LogFacts, *_: Any) -> None:
    facts.rows += 1


def _note_stats(facts: LogFacts, *_: Any) -> None:
    facts.stats += 1


def _note_exit(facts: LogFacts, *_: Any) -> None:
    facts.exited = True


def _note_output(facts: LogFacts, record: Any, home: Path) -> None:  # noqa: ARG001  # one form for all
    facts.lines += record.output_raw.line.count("\n")


def _note_artifact(facts: LogFacts, record: Any, home: Path) -> None:
    facts.artifacts += 1
    manifest = record.artifact.manifest
    if manifest.manifest_file_path:
        _note_place(facts, manifest.manifest_file_path, home)
    for entry in manifest.contents:
        if entry.local_path:
            _note_place(facts, entry.local_path, home, entry.size, entry.digest)


def _note_place(facts: LogFacts, path: str, home: Path, size: int = 0, digest: str = "") -> None:
    found = _find(path, home, size, digest)
    if found is None:
        facts.lost.append(path)
    else:
        facts.payload += found.stat().st_size
        facts.places[path] = str(found)


def _note_files(facts: LogFacts, record: Any, home: Path) -> None:  # noqa: ARG001  # one form for all
    for item in record.files.files:
        path = facts.log.parent / "files" / item.path
        if any(sign in item.path for sign in "*?["):
            continue
        facts.files += 1
        if path.is_file():
            facts.payload += path.stat().st_size
        else:
            facts.lost.append(f"files/{item.path}")


_NOTES = {
    "run": _note_run,
    "history": _note_row,
    "stats": _note_stats,
    "exit": _note_exit,
    "output_raw": _note_output,
    "artifact": _note_artifact,
    "files": _note_files,
}


def _find(path: str, home: Path, size: int, digest: str) -> Path | None:
    """Return the file *path*, or the one below *home* with the longest common end of name and its content."""
    at = Path(path)
    if _is_it(at, size, digest):
        return at
    parts = at.parts[1:]
    ends = (home.joinpath(*parts[i:]) for i in range(len(parts)))
    return next((end for end in ends if _is_it(end, size, digest)), None)


def _is_it(path: Path, size: int, digest: str) -> bool:
    """Return whether *path* is there with the content that was logged, which alone may be uploaded."""
    if not path.is_file() or (size and path.stat().st_size != size):
        return False
    if len(digest) != _MD5:
        return True
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5") if hasattr(hashlib, "file_digest") else None
        if found is None:  # Python 3.10
            found = hashlib.md5(file.read(), usedforsecurity=False)
    return base64.b64encode(found.digest()).decode() == digest
