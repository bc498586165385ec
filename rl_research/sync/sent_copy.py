"""The copy of a log that is sent: whole records, an end, files where they are now, no row twice.

W&B appends rows, so what the server has of a run decides which rows are left out of the copy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_research.sync.logs import LogFacts, timestamps
from rl_research.sync.server import RunThere
from rl_research.tracking import LogWriter, parse_record, read_records

_CRASHED = 255  # the exit code of a process that did not come to its end


@dataclass
class Skipped:
    """Part of a log that the server has already; counted down while the copy is written."""

    rows: int = 0
    stats: int = 0
    lines: int = 0

    def has(self, record: Any) -> bool:
        """Return whether the server has *record*."""
        kind = record.WhichOneof("record_type")
        if kind == "history":
            return self._count("rows", 1)
        if kind == "stats":
            return self._count("stats", 1)
        return kind == "output_raw" and self._count("lines", record.output_raw.line.count("\n"))

    def _count(self, what: str, number: int) -> bool:
        left = getattr(self, what)
        if left <= 0:
            return False
        setattr(self, what, left - number)
        return True


def write_copy(facts: LogFacts, folder: Path, left_out: Skipped, summary: Mapping[str, Any] | None = None) -> Path:
    """Write what is to be sent of the log that *facts* describe into *folder*, and return its path.

    A log without an end gets one, exit code 255. Artifacts whose files are lost are left out: W&B
    would leave them pending for ever. The log begins with *summary*, the one that the server has, which
    W&B would replace by that of the copy's own rows.
    """
    folder.mkdir(parents=True)
    copy = folder / f"run-{facts.run_id}.wandb"
    files = facts.log.parent / "files"
    if files.is_dir():
        (folder / "files").symlink_to(files.absolute(), target_is_directory=True)
    else:
        (folder / "files").mkdir()  # wandb writes the summary there; stores keep no empty folders
    with copy.open("wb") as file:
        writer, number = LogWriter(file), 0
        for payload in read_records(facts.log):
            record = parse_record(payload)
            if not (left_out.has(record) or _is_lost(record, facts) or _is_idle(record, facts)):
                number = record.num
                writer.write(record.SerializeToString() if _corrected(record, facts) else payload)
                if summary and record.WhichOneof("record_type") == "run":
                    writer.write(_record_of(summary))
        if not facts.exited:
            end = parse_record(b"")
            end.num, end.exit.exit_code = number + 1, _CRASHED
            writer.write(end.SerializeToString())
    return copy


def _record_of(summary: Mapping[str, Any]) -> bytes:
    record = parse_record(b"")
    for key, value in summary.items():
        item = record.summary.update.add()
        item.nested_key.append(key)
        item.value_json = json.dumps(value)
    return bytes(record.SerializeToString())


def _is_idle(record: Any, facts: LogFacts) -> bool:
    """Return whether *record* only says how long a log without rows was open."""
    return (
        facts.rows == 0
        and record.WhichOneof("record_type") == "summary"
        and all({item.key, *item.nested_key} <= {"", "_runtime", "_wandb", "runtime"} for item in record.summary.update)
    )


def _is_lost(record: Any, facts: LogFacts) -> bool:
    if record.WhichOneof("record_type") != "artifact":
        return False
    manifest = record.artifact.manifest
    paths = [manifest.manifest_file_path, *(entry.local_path for entry in manifest.contents)]
    return any(path in facts.lost for path in paths if path)


def _corrected(record: Any, facts: LogFacts) -> bool:
    """Put right what *record* says of the run's id and of places; whether anything was."""
    kind = record.WhichOneof("record_type")
    if kind == "run" and record.run.run_id != facts.run_id:
        record.run.run_id = facts.run_id
        return True
    return kind == "artifact" and _corrected_artifact(record.artifact, facts)


def _corrected_artifact(artifact: Any, facts: LogFacts) -> bool:
    changed: bool = artifact.run_id != facts.run_id
    artifact.run_id = facts.run_id
    manifest = artifact.manifest
    if (now := _moved(manifest.manifest_file_path, facts)) is not None:
        manifest.manifest_file_path, changed = now, True
    for entry in manifest.contents:
        if (now := _moved(entry.local_path, facts)) is not None:
            entry.local_path, changed = now, True
    return changed


def _moved(path: str, facts: LogFacts) -> str | None:
    """Return where *path* is now, if it is not where the log has it."""
    now = facts.places.get(path)
    return None if now == path else now


class Unclear(Exception):
    """Raised when the server has rows that the logs do not account for."""


def rows_delivered(logs: Sequence[LogFacts], there: RunThere) -> int:
    """Return how many of the rows in *logs*, which follow one another, the server has.

    W&B appends, so what it has of them is their beginning, and its last row tells where that ends.
    Rows of other segments may stand before. Raises `Unclear`.
    """
    total = sum(facts.rows for facts in logs)
    if 0 in (there.rows, total):
        return 0
    if there.last_row_at is None:
        if there.rows > total:
            raise Unclear(f"it has {there.rows:,} rows, and {total:,} are recorded here")
        return there.rows
    times = [at for facts in logs for at in timestamps(facts.log)]
    matches = [number + 1 for number, at in enumerate(times) if at == there.last_row_at]
    if matches:
        found = there.rows if there.rows in matches else matches[-1]
        if found > there.rows:
            raise Unclear(f"it has {there.rows:,} rows, the last of which is row {found:,} here")
        return found
    known = [at for at in times if at is not None]
    if known and min(known) <= there.last_row_at:
        raise Unclear("its last row is not among those recorded here, and later than the first")
    return 0


def skipped_parts(logs: Sequence[LogFacts], there: RunThere) -> list[Skipped]:
    """Return what is left out of each of *logs*."""
    rows = rows_delivered(logs, there)
    stats, lines = (there.stats, there.lines) if rows else (0, 0)
    parts = []
    for facts in logs:
        part = Skipped(min(rows, facts.rows), min(stats, facts.stats), min(lines, facts.lines))
        rows, stats, lines = rows - part.rows, stats - part.stats, lines - part.lines
        parts.append(part)
    return parts
