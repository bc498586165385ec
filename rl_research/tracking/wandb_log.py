"""What the W&B logs of a run's earlier segments hold, read from the files themselves.

A ``.wandb`` file is a LevelDB log (blocks of 32 KiB, chunks with a checksum) behind a header of 7 bytes,
and a record is a protobuf of wandb's. A killed process leaves its tail out; what is whole counts.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from wandb.proto import wandb_internal_pb2

from rl_research.tracking.logged_rows import Logged

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_MAGIC = b":W&B"
_START = _MAGIC + b"\xe1\xbe\x00"


def logged(folder: Path, run_id: str, but: Path | None = None, kinds: str = "*run") -> Logged | None:
    """What the segments of *run_id* in *folder*, W&B's own, hold.

    *kinds* is how the names of their folders begin: ``offline-run``, ``run``, both. The segment in *but*
    is left out. None if there is no other: then nobody knows.
    """
    logs = logs_of(folder, run_id, but, kinds)
    rows = [row_of(parsed(record)) for log in logs for record in records(log)]
    steps = {step for step, numbers, _ in rows if numbers}
    media = {(name, step) for step, _, names in rows for name in names}
    return Logged(frozenset(steps), frozenset(media)) if logs else None


def logs_of(folder: Path, run_id: str, but: Path | None = None, kinds: str = "*run") -> list[Path]:
    """The logs of *run_id*'s segments in *folder*, as `logged` takes them."""
    found = sorted(folder.glob(f"{kinds}-*/run-{run_id}.wandb"))
    return [log for log in found if log.parent != but]


def logged_artifacts(folder: Path, run_id: str) -> Iterator[Mapping[str, Any]]:
    """The metadata of each artifact that the segments of *run_id* in *folder* hold."""
    for log in logs_of(folder, run_id):
        for payload in records(log):
            record = parsed(payload)
            if record.WhichOneof("record_type") == "artifact" and record.artifact.metadata:
                yield json.loads(record.artifact.metadata)


def records(log: Path) -> Generator[bytes, None, int]:
    """The payloads of *log*'s whole records, up to where it was cut off or damaged.

    The generator's own value is the byte where that was: the file's size if it is whole.
    """
    with log.open("rb") as file:
        if not file.read(_HEADER).startswith(_MAGIC):
            return 0
        position, payload, whole = _HEADER, b"", _HEADER
        while True:
            left = _BLOCK - position % _BLOCK
            if left < _HEADER:
                file.read(left)  # padding to the end of the block
                position += left
            chunk = _chunk(file.read(_HEADER), file.read)
            if chunk is None:
                return whole
            kind, data = chunk
            position += _HEADER + len(data)
            payload = data if kind in (_FULL, _FIRST) else payload + data
            if kind in (_FULL, _LAST):
                whole = position
                yield payload


def is_damaged(log: Path, position: int) -> bool:
    """Whether *log*'s bytes from *position* on are wrong, not merely cut off.

    A killed process leaves part of a record, or zeros; a chunk that is there as a whole and fails its
    checksum was changed later.
    """
    size = _size_without_zeros(log)
    if position == 0:
        return size >= _HEADER
    with log.open("rb") as file:
        file.seek(position)
        while True:
            left = _BLOCK - file.tell() % _BLOCK
            if left < _HEADER:
                file.seek(left, 1)
            start, header = file.tell(), file.read(_HEADER)
            if _chunk(header, file.read) is None:
                break
    there = len(header) == _HEADER and any(header)
    return there and start + _HEADER + struct.unpack("<IHB", header)[1] <= size


def _size_without_zeros(log: Path) -> int:
    """The size of *log* but for the zeros at its end, which a power cut leaves of what was not written."""
    end = log.stat().st_size
    with log.open("rb") as file:
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            if content := file.read(end - start).rstrip(b"\0"):
                return start + len(content)
            end = start
    return 0


class Writer:
    """Writes a log: the counterpart of `records`."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._file.write(_START)
        self._position = _HEADER

    def write(self, payload: bytes) -> None:
        """Append one record."""
        first = True
        while True:
            left = _BLOCK - self._position % _BLOCK
            if left < _HEADER:
                self._put(bytes(left))
                left = _BLOCK
            part, payload = payload[: left - _HEADER], payload[left - _HEADER :]
            kind = (_FIRST if first else _MIDDLE) if payload else (_FULL if first else _LAST)
            checksum = zlib.crc32(part, zlib.crc32(bytes([kind])))
            self._put(struct.pack("<IHB", checksum, len(part), kind) + part)
            first = False
            if not payload:
                return

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._position += len(data)


def parsed(payload: bytes) -> Any:
    """W&B's own record of *payload*; an empty record without one."""
    return wandb_internal_pb2.Record.FromString(payload)  # type: ignore[attr-defined]  # made at import by protobuf


def _chunk(header: bytes, read: Callable[[int], bytes]) -> tuple[int, bytes] | None:
    if len(header) < _HEADER:
        return None
    checksum, length, kind = struct.unpack("<IHB", header)
    data = read(length)
    whole = len(data) == length and kind in (_FULL, _FIRST, _MIDDLE, _LAST)
    if not whole or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
        return None
    return kind, data


def row_of(record: Any) -> tuple[int, list[str], set[str]]:
    """The step of a history row, and the names of its numbers and of its media; empty for others."""
    if record.WhichOneof("record_type") != "history":
        return -1, [], set()
    items = record.history.item
    cells = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    step = cells.pop("global_step", None)
    if step is None:
        return -1, [], set()
    media = {
        name.removesuffix("/_type")  # a film is a mapping, which W&B stores flat
        for name, value in cells.items()
        if name.endswith("/_type") and str(value).endswith("-file")
    }
    numbers = [
        name
        for name, value in cells.items()
        if _is_number(value) and not name.startswith("_") and name.rpartition("/")[0] not in media
    ]
    return int(step), numbers, media


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity")
