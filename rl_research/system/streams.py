"""Standard streams that never end a run, whether they are closed at the start or go away later."""

import io
import os
import select
import sys
from pathlib import Path
from typing import Any, TextIO


class _Lasting(io.FileIO):
    """Output that nobody may read any more: a pipe without a reader, a closed terminal, a full disk.

    What cannot be written is dropped, and so is everything after it.
    """

    def write(self, data: Any) -> int:
        """Write *data*, or drop it; wait where a pipe that does not block is full."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError:
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            return memoryview(data).nbytes
        return written


def keep_streams() -> None:
    """Open what is closed of stdin, stdout and stderr, and let no failure of the latter two reach who writes.

    A file opened later would else get the number of a closed one, and the output of every library with it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # open as long as the process
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)


def _lasting(before: TextIO | None, descriptor: int) -> TextIO:
    if before is not None:
        before.flush()
    encoding = "utf-8" if before is None else before.encoding
    buffer = io.BufferedWriter(_Lasting(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=True)
