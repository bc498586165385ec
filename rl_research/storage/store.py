"""Bytes to and from any URL.

A store is an fsspec file system and a root in it. Objects appear whole or not at all: by rename where
the file system has one, by a single put on object stores.

What waiting may mend leaves as the client raised it (`is_transient` knows), within `timeout` seconds
without progress; what it does not mend leaves as a `StorageError` of one line. A missing object is a
`FileNotFoundError`.
"""

import datetime
import errno
import hashlib
import os
import posixpath
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rl_research.errors import StorageError
from rl_research.storage import multipart
from rl_research.storage.filesystem import MISSING, FileSystem
from rl_research.storage.hiccups import is_hiccup, note_repeat
from rl_research.storage.multipart import Unfinished
from rl_research.storage.spelling import check_url
from rl_research.system import raise_if_refused, sha256

TIMEOUT = 60.0  # seconds without progress until an operation is given up
_HERE = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS])  # while fetching: this machine's disk

#: How the clients call the time a file was written; of a local file ``created`` is something else.
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


@dataclass(frozen=True)
class Entry:
    """A file in a store: its size in bytes, and when it was written by the store's own clock.

    *modified* is in seconds since 1970, None where the file system keeps none.
    """

    size: int
    modified: float | None


class Store:
    """Folder or prefix that *url* names, on whatever file system its scheme asks for.

    :param options: of the fsspec class; they win over the bounds that are set here
    :param timeout: seconds without progress until an operation is given up

    A server that cannot be reached yet is asked again at the first operation. To be used by the thread
    that made it. Raises `ConfigError` where the URL or its client is wrong.
    """

    def __init__(self, url: str | os.PathLike[str], options: Mapping[str, Any] | None = None, timeout: float = TIMEOUT):
        if isinstance(url, str):
            check_url(url)
        self._files = FileSystem(os.fspath(url), options or {}, timeout)
        self.url = self._files.url
        self.is_local = self._files.is_local

    @property
    def root(self) -> str:
        """Folder or prefix, as the file system writes it."""
        return self._files.root

    @property
    def fs(self) -> Any:
        """File system of fsspec; connects if that has not been possible before."""
        return self._files.client

    def path(self, name: str) -> str:
        """Return where *name* lies, as the file system writes it."""
        return posixpath.join(self.root, name) if name else self.root

    def address(self, name: str) -> str:
        """Return where *name* lies, as a URL that any fsspec program can open; never with a password."""
        if self.is_local:
            address: str = self.fs.unstrip_protocol(self.path(name))
            return address
        return below(self.url, name)

    def is_at(self, folder: Path) -> bool:
        """Return whether this is the local *folder*."""
        return self.is_local and Path(self.root) == folder.absolute()

    def put(self, source: Path, name: str) -> None:
        """Copy the local file *source* to *name*, which appears whole or not at all."""
        self.put_files({name: source})

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Copy local files to the names they have here, several at once; each appears whole or not at all."""
        with self._files.asking("write", next(iter(files), "")):
            try:
                self._files.put([(source, self.path(name)) for name, source in files.items()])
            except FileNotFoundError:
                for source in files.values():
                    if not source.exists():
                        raise StorageError(f"{source} was removed while it was copied") from None
                raise

    def write(self, name: str, data: bytes) -> None:
        """Make *name* hold *data*; it appears whole or not at all."""
        with self._files.asking("write", name):
            self._files.write(self.path(name), data)

    def read(self, name: str) -> bytes:
        """Return the bytes of *name*, which should be few; `FileNotFoundError` if there is none."""
        with self._files.asking("read", name):
            data: bytes = self._files.ask("cat_file", self.path(name))
        return data

    def pieces(self, name: str, size: int, first: int = 0) -> Iterator[bytes]:
        """Yield the *size* bytes of *name* from byte *first* on, a piece at a time."""
        if size <= multipart.PART:  # rclone's checksum of a range is that of an object that came in one request
            yield self.read(name)[first:size]
            return
        for start in range(first, size, multipart.PART):
            with self._files.asking("read", name):
                bounds = {"start": start, "end": min(size, start + multipart.PART)}
                piece = self._files.ask("cat_file", self.path(name), **bounds)
            yield piece

    def sha256(self, name: str, size: int) -> str:
        """Return the SHA-256 of the *size* bytes of *name*, which are read a piece at a time."""
        digest = hashlib.sha256()
        for piece in self.pieces(name, size):
            digest.update(piece)
        return digest.hexdigest()

    def get(self, name: str, target: Path) -> str:
        """Copy *name* to the local file *target* and return the SHA-256 of what arrived."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._files.asking("read", name):
            try:
                self._fetch(name, target)
            except OSError as error:
                if error.errno in _HERE and error.__cause__ is None:
                    raise_if_refused(error, target)
                raise
        return sha256(target)

    def _fetch(self, name: str, target: Path) -> None:
        """Copy *name* to *target*; what has come before a hiccup is not asked for again."""
        try:
            self._files.fetch(self.path(name), target)
        except Exception as error:
            if not is_hiccup(error):
                raise
            self._files.forget()
            there = target.stat().st_size if target.exists() else 0
            if there >= (size := self._files.ask("info", self.path(name))["size"]):
                raise
            note_repeat(error)
            with target.open("ab") as out:
                for piece in self.pieces(name, size, there):
                    out.write(piece)

    def size(self, name: str) -> int | None:
        """Return the size of *name* in bytes, None if there is none."""
        try:
            with self._files.asking("find", name):
                found: int = self._files.ask("info", self.path(name))["size"]
        except MISSING:
            return None
        return found

    def sizes(self, name: str = "") -> dict[str, int]:
        """Return the files directly below *name* with their sizes in bytes."""
        return {base: entry.size for base, entry in self.content(name)[0].items()}

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly below *name*."""
        return self.content(name)[1]

    def content(self, name: str = "") -> tuple[dict[str, Entry], list[str]]:
        """Return what is directly below *name*: the files, and the names of the folders."""
        found = self._listed(name).items()
        files = {base: _entry(info) for base, info in found if info["type"] == "file"}
        return files, sorted(base for base, info in found if info["type"] == "directory")

    def entries(self, name: str = "", leave_out: Container[str] = ()) -> dict[str, Entry]:
        """Return every file below *name*, by its name in the store, but those in the folders *leave_out* of *name*.

        Links to folders are not followed.
        """
        found: dict[str, Entry] = {}
        for base, info in self._listed(name).items():
            path = posixpath.join(name, base)
            if info["type"] == "file":
                found[path] = _entry(info)
            elif info["type"] == "directory" and not info.get("islink") and base not in leave_out:
                found |= self.entries(path)
        return found

    def remove(self, name: str) -> None:
        """Remove *name* and all below it; nothing there is fine."""
        with self._files.asking("remove", name), suppress(*MISSING):
            if not self._files.is_async:
                self._files.ask("info", self.path(name))  # not all of them say that there is nothing
            self._files.ask("rm", self.path(name), recursive=True)

    def remove_empty_folder(self, name: str) -> None:
        """Remove the folder *name* if nothing is in it; object stores have no such folders."""
        if not self._files.is_async and not self._listed(name):
            with self._files.asking("remove", name), suppress(*MISSING):
                self._files.ask("rmdir", self.path(name))

    def unfinished_uploads(self) -> list[Unfinished]:
        """Return the uploads below it that were begun and not completed; only S3 has some.

        `StorageError` names the right that is missing.
        """
        try:
            with self._files.asking("list", "unfinished uploads"):
                if not self._files.is_s3:
                    return []
                return self._files.wait_for(partial(multipart.unfinished_uploads, self.fs, self.root))
        except MISSING:  # some servers say so where there are none
            return []

    def abort(self, upload: Unfinished) -> None:
        """End *upload*, which gives free what it holds; nothing is visible of that."""
        with self._files.asking("abort", f"the upload of {upload.name}"):
            path = self.path(upload.name)
            self._files.wait_for(lambda _: multipart.abort_upload(self.fs, path, upload.upload_id))

    def _listed(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the file system's entries directly below *name*."""
        try:
            with self._files.asking("list", name):
                self.fs.invalidate_cache()  # some clients remember listings
                entries = self._files.ask("ls", self.path(name), detail=True)
        except MISSING:
            return {}
        # a file, or a folder's marker, is listed as its own content
        here = self.path(name).strip("/")
        found = {entry["name"].strip("/"): entry for entry in entries}
        return {posixpath.basename(path): entry for path, entry in found.items() if path != here}


def below(url: str, name: str) -> str:
    """Return the URL of *name* below *url*, which may be a chain such as ``simplecache::s3://bucket``."""
    if not name:
        return url
    before, link, after = around_path(url)
    return f"{before}{link.rstrip('/')}/{name}{after}"


def around_path(url: str) -> tuple[str, str, str]:
    """*url* as what stands before the link that holds its path, that link, and what follows it."""
    links = url.split("::")
    index = next((i for i, link in enumerate(links) if "://" in link), len(links) - 1)
    before = "".join(f"{link}::" for link in links[:index])
    return before, links[index], "".join(f"::{link}" for link in links[index + 1 :])


def _entry(info: Mapping[str, Any]) -> Entry:
    return Entry(int(info["size"] or 0), _modified(info))


def _modified(info: Mapping[str, Any]) -> float | None:
    value = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            return None
    if isinstance(value, datetime.datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
        return aware.timestamp()
    return float(value) if isinstance(value, int | float) else None
