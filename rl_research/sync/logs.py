"""Contents of a W&B log: whose rows, how many, and the files that it promises."""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rl_research.tracking import Record, is_damaged, read_records

_MD5 = 24  # characters of an MD5 in base64, as W&B's manifests write it


@dataclass
class LogFacts:
    """Contents of one segment's log, whose run's folder is *home*."""

    log: Path
    home: Path
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

    def note(self, record: Record) -> None:
        """Take one record of the log into account."""
        match record.WhichOneof("record_type"):
            case "run":
                self._note_run(record.run)
            case "history":
                self.rows += 1
            case "stats":
                self.stats += 1
            case "output_raw":
                self.lines += record.output_raw.line.count("\n")
            case "artifact":
                self.artifacts += 1
                manifest = record.artifact.manifest
                self._note_file(manifest.manifest_file_path)
                for entry in manifest.contents:
                    self._note_file(entry.local_path, entry.size, entry.digest)
            case "files":
                for item in record.files.files:
                    self._note_media(item.path)
            case "exit":
                self.exited = True

    def _note_run(self, run: Record) -> None:
        self.entity, self.project, self.host, self.run_id = run.entity, run.project, run.host, run.run_id
        self.start = run.start_time.seconds + run.start_time.nanos / 1e9

    def _note_media(self, name: str) -> None:
        """Note that *name* is to be uploaded from the segment's own folder, unless it is a pattern."""
        if set(name) & set("*?["):
            return
        self.files += 1
        path = self.log.parent / "files" / name
        if path.is_file():
            self.payload += path.stat().st_size
        else:
            self.lost.append(f"files/{name}")

    def _note_file(self, path: str, size: int = 0, digest: str = "") -> None:
        """Note where the file *path* of an artifact is, if it is one on disk: where the log has it, or at home."""
        if not path:
            return
        parts = Path(path).parts[1:]
        ends = (self.home.joinpath(*parts[i:]) for i in range(len(parts)))  # the longest common end first
        found = next((place for place in (Path(path), *ends) if _is_it(place, size, digest)), None)
        if found is None:
            self.lost.append(path)
        else:
            self.payload += found.stat().st_size
            self.places[path] = str(found)


def scan(log: Path, home: Path) -> LogFacts:
    """Read *log* once; files that are not where it says are looked for below *home*."""
    facts = LogFacts(log, home, size=log.stat().st_size)
    reading = read_records(log)
    while True:
        try:
            facts.note(next(reading))
        except StopIteration as end:
            if end.value < facts.size and is_damaged(log, end.value):
                facts.damaged_at = end.value
            return facts


def timestamps(log: Path) -> Iterator[float | None]:
    """When each row of *log* was logged, by which a row is known again."""
    for record in read_records(log):
        if record.WhichOneof("record_type") == "history":
            cells = {key: item.value_json for item in record.history.item for key in (item.key, *item.nested_key[:1])}
            yield float(json.loads(cells["_timestamp"])) if "_timestamp" in cells else None


def _is_it(path: Path, size: int, digest: str) -> bool:
    """Return whether *path* is there with the content that was logged, which alone may be uploaded."""
    if not path.is_file() or (size and path.stat().st_size != size):
        return False
    if len(digest) != _MD5:
        return True
    found = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return base64.b64encode(found.digest()).decode() == digest
