"""Local files that appear whole or not at all, and what it means when the disk refuses."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rl_research.errors import ConfigError, StorageError

_REFUSED = {
    errno.EACCES: "no right to write there",
    errno.EPERM: "no right to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
}


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return *path* with the user's home folder for ``~``; raise `ConfigError` where that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{os.fspath(path)}: ~ stands for a home folder that is not known. Set HOME, or write the folder out."
        ) from None


def write_atomically(target: Path, content: bytes | Path) -> None:
    """Make *target* hold *content* (bytes, or a file's), as `replacing` does."""
    with replacing(target) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            shutil.copyfile(content, temporary)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside *target* that becomes *target* when the block succeeds, durable before it is visible.

    Raises `StorageError` naming the file when the disk refuses.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        make_durable(temporary)
        temporary.replace(target)
        make_durable(target.parent)
    except OSError as error:
        raise_if_refused(error, target)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def raise_if_refused(error: OSError, target: Path) -> None:
    """Turn a refusal of the local disk into a `StorageError` with its remedy."""
    if error.errno in _REFUSED:
        raise StorageError(
            f"cannot write {target}: {_REFUSED[error.errno]}. "
            "Free space or rights there, or choose another place with runs_dir=PATH."
        ) from None


def make_durable(path: Path) -> None:
    """Bring a file's bytes, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the SHA-256 of the bytes of *path*, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unused(path: Path) -> Path:
    """*path*, or the first of ``stem-2.suffix``, ``stem-3.suffix``, … that does not exist."""
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{stem}-{number}{suffix}")
    return candidate
