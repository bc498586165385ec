"""Local files that appear whole or not at all, and what it means when the disk refuses."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from rl_research.errors import StorageError
from rl_research.utils.files import make_durable

_CHUNK = 1 << 20
_REFUSED = {
    errno.EACCES: "no right to write there",
    errno.EPERM: "no right to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
}


def write_atomically(target: Path, content: bytes | Path) -> None:
    """Make *target* hold *content* (bytes, or a file's), durable before it is visible.

    Raises `StorageError` naming the file when the disk refuses.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out:
            if isinstance(content, bytes):
                out.write(content)
            else:
                with content.open("rb") as source:
                    while chunk := source.read(_CHUNK):
                        out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(target)
        make_durable(target.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise_if_refused(error, target)
        raise


def raise_if_refused(error: OSError, target: Path) -> None:
    """Turn a refusal of the local disk into a `StorageError` with its remedy."""
    if error.errno in _REFUSED:
        raise StorageError(
            f"cannot write {target}: {_REFUSED[error.errno]}. "
            "Free space or rights there, or choose another place with runs_dir=PATH."
        ) from None
