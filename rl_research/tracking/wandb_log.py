"""The log that W&B keeps of a segment on disk: its framing, its rows, its artifacts.

A ``.wandb`` file is a LevelDB log (blocks of 32 KiB, chunks with a checksum) behind a header of 7 bytes,
and a record is a protobuf of wandb's. A killed process leaves its tail out; what is whole counts.
"""

import json
import struct
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rl_research.tracking.wandb_private import LOG_HEADER, LOG_MAGIC, Record, parse_record

_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # numbers as W&B writes them
_CHUNK = struct.Struct("<IHB")  # checksum, length and kind before each chunk's data


@dataclass(frozen=True)
class Logged:
    """Rows and media that are in a run's segments already."""

    steps: frozenset[int] = frozenset()  # the `global_step` of every row of numbers
    media: frozenset[tuple[str, int]] = frozenset()  # name and `global_step` of each picture and film

    def __or__(self, other: "Logged") -> "Logged":
        return Logged(self.steps | other.steps, self.media | other.media)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, bool, set[str]]]) -> "Logged":
        """Return what *rows*, as `row_of` returns them, hold."""
        rows = list(rows)
        steps = frozenset(step for step, has_numbers, _ in rows if has_numbers)
        return cls(steps, frozenset((name, step) for step, _, media in rows for name in media))


def read_logged(folder: Path, run_id: str, but: Path | None = None, kinds: str = "*run") -> Logged | None:
    """Return what the segments of *run_id* in *folder*, W&B's own, hold; None if there is no segment.

    *kinds* is how the names of their folders begin: ``offline-run``, ``run``, both. The segment in *but* is left out.
    """
    if not (logs := logs_of(folder, run_id, but, kinds)):
        return None
    return Logged.of(row_in(record) for log in logs for record in read_records(log))


def logs_of(folder: Path, run_id: str, but: Path | None = None, kinds: str = "*run") -> list[Path]:
    """Return the logs of *run_id*'s segments in *folder*, chosen as in `read_logged`."""
    found = sorted(folder.glob(f"{kinds}-*/run-{run_id}.wandb"))
    return [log for log in found if log.parent != but]


def logged_artifacts(folder: Path, run_id: str) -> Iterator[Mapping[str, Any]]:
    """Yield the metadata of each artifact that the segments of *run_id* in *folder* hold."""
    for log in logs_of(folder, run_id):
        for record in read_records(log):
            if record.WhichOneof("record_type") == "artifact" and record.artifact.metadata:
                yield json.loads(record.artifact.metadata)


def row_in(record: Record) -> tuple[int, bool, set[str]]:
    """Return what `row_of` does for the row in *record*; as an empty row if that is no row."""
    if record.WhichOneof("record_type") != "history":
        return row_of({})
    items = record.history.item
    return row_of({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})


def row_of(cells: Mapping[str, Any]) -> tuple[int, bool, set[str]]:
    """Return the step of a row with *cells*, whether it has numbers, and the names of its media.

    Names of nested cells are spelt with slashes. Without a `global_step` the step is -1, and nothing is there.
    """
    if (step := cells.get("global_step")) is None:
        return -1, False, set()
    media = {  # a film is a mapping, which W&B stores flat
        name.removesuffix("/_type")
        for name, value in cells.items()
        if name.endswith("/_type") and str(value).endswith("-file")
    }
    own = {name for name in cells if name != "global_step" and not name.startswith("_")}
    has_numbers = any(
        isinstance(cells[name], int | float) or cells[name] in _NOT_FINITE
        for name in own
        if name.rpartition("/")[0] not in media
    )
    return int(step), has_numbers, media


def read_records(log: Path) -> Generator[Record, None, int]:
    """Yield *log*'s whole records, up to where it was cut off or damaged.

    The generator returns the byte where that was: the file's size if it is whole.
    """
    with log.open("rb") as file:
        if not file.read(len(LOG_HEADER)).startswith(LOG_MAGIC):
            return 0
        whole = len(LOG_HEADER)
        for payload, end in payloads(file, whole):
            whole = end
            yield parse_record(payload)
        return whole


def has_exited(log: Path) -> bool:
    """Return whether the Exit record, a log's last, is on disk; only the last two blocks are read."""
    try:
        start = max((log.stat().st_size - 1) // _BLOCK - 1, 0) * _BLOCK
        with log.open("rb") as file:
            tail = payloads(file, start or len(LOG_HEADER))
            return any(parse_record(payload).WhichOneof("record_type") == "exit" for payload, _ in tail)
    except OSError:
        return False


def is_damaged(log: Path, position: int) -> bool:
    """Return whether *log*'s bytes from *position* on are wrong, not merely cut off.

    A killed process leaves part of a record, or zeros; a chunk that is there as a whole and fails its
    checksum was changed later.
    """
    with log.open("rb") as file:
        if position > 0:
            for *_, end in _chunks(file, position):
                position = end
            position = _next_chunk(position)
        file.seek(position)
        rest = file.read().rstrip(b"\0")  # without the zeros that a power cut leaves
    if position == 0:
        return len(rest) >= len(LOG_HEADER)
    there = len(rest) >= _CHUNK.size and any(rest[: _CHUNK.size])
    return there and len(rest) >= _CHUNK.size + _CHUNK.unpack_from(rest)[1]


def payloads(file: IO[bytes], position: int) -> Iterator[tuple[bytes, int]]:
    """Yield payload and end of each whole record that begins at *position*, or later, of a log."""
    payload: bytes | None = None
    for kind, data, end in _chunks(file, position):
        if kind in (_FULL, _FIRST):
            payload = data
        elif payload is not None:
            payload += data
        if payload is not None and kind in (_FULL, _LAST):
            yield payload, end


def _chunks(file: IO[bytes], position: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield kind, data and end of each chunk from *position* on, up to one that is cut off or damaged."""
    file.seek(position)
    while True:
        file.read(_next_chunk(position) - position)
        position = _next_chunk(position)
        if len(header := file.read(_CHUNK.size)) < _CHUNK.size:
            return
        checksum, length, kind = _CHUNK.unpack(header)
        data = file.read(length)
        whole = len(data) == length and kind in (_FULL, _FIRST, _MIDDLE, _LAST)
        if not whole or checksum != _checksum(kind, data):
            return
        position += _CHUNK.size + length
        yield kind, data, position


def _next_chunk(position: int) -> int:
    """Return where the chunk after *position* begins: a header does not span blocks."""
    left = _BLOCK - position % _BLOCK
    return position + left if left < _CHUNK.size else position


def _checksum(kind: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(bytes([kind])))


class LogWriter:
    """Writes a log: the counterpart of `read_records`."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._position = file.write(LOG_HEADER)

    def write(self, payload: bytes) -> None:
        """Append one record."""
        first = True
        while payload or first:
            self._put(bytes(_next_chunk(self._position) - self._position))
            room = _BLOCK - self._position % _BLOCK - _CHUNK.size
            data, payload = payload[:room], payload[room:]
            kind = (_FIRST if first else _MIDDLE) if payload else (_FULL if first else _LAST)
            self._put(_CHUNK.pack(_checksum(kind, data), len(data), kind) + data)
            first = False

    def _put(self, data: bytes) -> None:
        self._position += self._file.write(data)
