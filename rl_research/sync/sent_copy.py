"""The copy of a log that is sent: whole records, an end, files where they are now, no row twice.

W&B appends rows, so what the server has of a run decides which rows are left out of the copy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_research.sync.logs import LogFacts, timestamps
from rl_research.tracking import LogWriter, Record, RunThere, parse_record, read_records

_CRASHED = 255  # the exit code of a process that did not come to its end


@dataclass
class Skipped:
    """Part of a log that the server has already; counted down while the copy is written."""

    rows: int = 0
    stats: int = 0
    lines: int = 0

    def has(self, record: Record) -> bool:
        """Return whether the server has *record*."""
        name = {"history": "rows", "stats": "stats", "output_raw": "lines"}.get(record.WhichOneof("record_type"))
        if name is None or (left := getattr(self, name)) <= 0:
            return False
        setattr(self, name, left - (record.output_raw.line.count("\n") if name == "lines" else 1))
        return True


def write_copy(facts: LogFacts, folder: Path, left_out: Skipped, summary: Mapping[str, object] | None = None) -> Path:
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
        for record in read_records(facts.log):
            if not (left_out.has(record) or _is_left_out(record, facts)):
                number = record.num
                writer.write(_corrected(record, facts).SerializeToString())
                if summary and record.WhichOneof("record_type") == "run":
                    writer.write(_record_of(summary))
        if not facts.exited:
            end = parse_record(b"")
            end.num, end.exit.exit_code = number + 1, _CRASHED
            writer.write(end.SerializeToString())
    return copy


def _record_of(summary: Mapping[str, object]) -> bytes:
    record = parse_record(b"")
    for key, value in summary.items():
        item = record.summary.update.add()
        item.nested_key.append(key)
        item.value_json = json.dumps(value)
    return bytes(record.SerializeToString())


def _is_left_out(record: Record, facts: LogFacts) -> bool:
    """Return whether *record* is an artifact with lost files, or says only how long a log without rows was open."""
    match record.WhichOneof("record_type"):
        case "artifact":
            manifest = record.artifact.manifest
            paths = [manifest.manifest_file_path, *(entry.local_path for entry in manifest.contents)]
            return any(path in facts.lost for path in paths if path)
        case "summary" if facts.rows == 0:
            cells = record.summary.update
            return all({item.key, *item.nested_key} <= {"", "_runtime", "_wandb", "runtime"} for item in cells)
        case _:
            return False


def _corrected(record: Record, facts: LogFacts) -> Record:
    """Put right what *record* says of places."""
    if record.WhichOneof("record_type") == "artifact":
        manifest = record.artifact.manifest
        if (now := facts.places.get(manifest.manifest_file_path)) is not None:
            manifest.manifest_file_path = now
        for entry in manifest.contents:
            if (now := facts.places.get(entry.local_path)) is not None:
                entry.local_path = now
    return record


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
