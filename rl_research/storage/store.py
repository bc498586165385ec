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
import logging
import os
import posixpath
import secrets
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from rl_research.errors import ConfigError, RLResearchError, StorageError, in_a_line
from rl_research.storage import clients, fsspec_private, multipart
from rl_research.storage.hiccups import again, again_async, has_hung_up, is_hiccup, note_repeat
from rl_research.storage.refusals import refusal, says_no_bucket
from rl_research.storage.spelling import check_options, check_url
from rl_research.storage.stalls import Progress, unless_stalled
from rl_research.storage.transient import is_transient
from rl_research.system import Attempt, countdown, masked, raise_if_refused, sha256, without_password, write_atomically

_log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT = 60.0  # seconds without progress until an operation is given up
_MISSING = (FileNotFoundError, NotADirectoryError)
_HERE = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS])  # while fetching: this machine's disk
_UNUSABLE = (ValueError, TypeError, AttributeError, LookupError)  # of a client: what it was given makes no sense
_ARCHIVES = {"zip", "tar", "libarchive"}  # opened, they read what they stand on

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
        self._given, self._has_options, self._timeout = os.fspath(url), bool(options), timeout
        check_options(self._given, options or {})
        self._options = clients.bounded(self._given, options or {}, timeout)
        self._is_archive = not _ARCHIVES.isdisjoint(clients.schemes(self._given))
        self.url = without_password(self._given)
        self._client: Any = None
        self.root = ""  # folder or prefix, as the file system writes it
        try:
            self._connect()
        except Exception as error:
            if not is_transient(error):
                raise
            self.root = fsspec.core.strip_protocol(self._given)
        self.is_local = isinstance(self._client, LocalFileSystem)

    @property
    def fs(self) -> Any:
        """File system of fsspec; connects if that has not been possible before."""
        if self._client is None:
            again(self._connect)
        return self._client

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

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Copy local files to the names they have here, several at once; each appears whole or not at all."""
        with self._asking("write", next(iter(files), "")):
            placed = [(source, self.path(name)) for name, source in files.items()]
            try:
                if self.fs.async_impl:
                    return self._wait_for(lambda progress: multipart.put_files(self.fs, placed, progress))
                for source, path in placed:
                    self._again(partial(self._put_whole, path, source))
            except FileNotFoundError:
                for source in files.values():
                    if not source.exists():
                        raise StorageError(f"{source} was removed while it was copied") from None
                raise

    def write(self, name: str, data: bytes) -> None:
        """Make *name* hold *data*; it appears whole or not at all."""
        with self._asking("write", name):
            if self.fs.async_impl:
                self._ask("pipe_file", self.path(name), data)
            else:
                self._again(partial(self._put_whole, self.path(name), data))

    def read(self, name: str) -> bytes:
        """Return the bytes of *name*, which should be few; `FileNotFoundError` if there is none."""
        with self._asking("read", name):
            data: bytes = self._ask("cat_file", self.path(name))
        return data

    def pieces(self, name: str, size: int, first: int = 0) -> Iterator[bytes]:
        """Yield the *size* bytes of *name* from byte *first* on, a piece at a time."""
        if size <= multipart.PART:  # rclone's checksum of a range is that of an object that came in one request
            yield self.read(name)[first:size]
            return
        for start in range(first, size, multipart.PART):
            with self._asking("read", name):
                piece = self._ask("cat_file", self.path(name), start=start, end=min(size, start + multipart.PART))
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
        with self._asking("read", name):
            try:
                self._resume_fetch(name, target)
            except OSError as error:
                if error.errno in _HERE and error.__cause__ is None:
                    raise_if_refused(error, target)
                raise
        return sha256(target)

    def _resume_fetch(self, name: str, target: Path) -> None:
        """Copy *name* to *target*; what has come before a hiccup is not asked for again."""
        try:
            self._fetch(self.path(name), target)
        except Exception as error:
            if not is_hiccup(error):
                raise
            self._forget()
            there = target.stat().st_size if target.exists() else 0
            if there >= (size := self._ask("info", self.path(name))["size"]):
                raise
            note_repeat(error)
            with target.open("ab") as out:
                for piece in self.pieces(name, size, there):
                    out.write(piece)

    def _fetch(self, path: str, target: Path) -> None:
        if not self.fs.async_impl:
            self._in_time(lambda progress: self.fs.get_file(path, str(target), callback=progress))
        else:
            get_file = fsspec_private.coroutine(self.fs, "get_file")
            self._wait_for(lambda progress: get_file(path, str(target), callback=progress))

    def size(self, name: str) -> int | None:
        """Return the size of *name* in bytes, None if there is none."""
        try:
            with self._asking("find", name):
                found: int = self._ask("info", self.path(name))["size"]
        except _MISSING:
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

    def _listed(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the file system's entries directly below *name*."""
        try:
            with self._asking("list", name):
                self.fs.invalidate_cache()  # some clients remember listings
                entries = self._ask("ls", self.path(name), detail=True)
        except _MISSING:
            return {}
        # a file, or a folder's marker, is listed as its own content
        here = self.path(name).strip("/")
        found = {entry["name"].strip("/"): entry for entry in entries}
        return {posixpath.basename(path): entry for path, entry in found.items() if path != here}

    def remove(self, name: str) -> None:
        """Remove *name* and all below it; nothing there is fine."""
        with self._asking("remove", name), suppress(*_MISSING):
            if not self.fs.async_impl:
                self._ask("info", self.path(name))  # not all of them say that there is nothing
            self._ask("rm", self.path(name), recursive=True)

    def remove_empty_folder(self, name: str) -> None:
        """Remove the folder *name* if nothing is in it; object stores have no such folders."""
        if not self.fs.async_impl and not self._listed(name):
            with self._asking("remove", name), suppress(*_MISSING):
                self._ask("rmdir", self.path(name))

    # ---------------------------------------------------------------- the file system: asked, waited for, opened

    def _ask(self, method: str, *arguments: Any, **more: Any) -> Any:
        """Return what the file system's *method* returns."""
        if not self.fs.async_impl:
            return self._again(lambda: getattr(self.fs, method)(*arguments, **more))
        call = partial(fsspec_private.coroutine(self.fs, method), *arguments, **more)
        # an answer that breaks off is beyond the request for s3fs; the others' requests end with the body
        whole = clients.kind_of(self.fs) in clients.READ_WITHIN_REQUESTS
        return self._wait_for(lambda _: call() if whole else again_async(call))

    def _wait_for(self, work: Callable[[Progress], Awaitable[T]]) -> T:
        """Return the result of *work* on fsspec's loop; it is given up when the progress it gets stands still."""
        progress = Progress()
        result: T = sync(self.fs.loop, unless_stalled, lambda: work(progress), progress, self._timeout)
        return result

    def _again(self, work: Callable[[], T]) -> T:
        """Return the result of *work*, begun again after a hiccup, on a new connection."""

        def attempt() -> T:
            try:
                return self._in_time(lambda _: work())
            except Exception as error:
                if is_hiccup(error):
                    self._forget()
                raise

        return again(attempt)

    def _in_time(self, work: Callable[[Progress], T]) -> T:
        """Return the result of *work*; that of an archive on top of another client, which may hang, is given up."""
        progress = Progress()
        if not self._is_archive:
            return work(progress)
        attempt, before = Attempt(lambda: work(progress)), progress.value
        while not attempt.ended_within(countdown(self._timeout)):
            if progress.value == before:
                raise TimeoutError(f"no progress in {self._timeout:g} seconds")
            before = progress.value
        return attempt.result()

    def _put_whole(self, path: str, content: bytes | Path) -> None:
        """Write *content* beside *path* and rename it, where the file system renames."""
        if self.is_local:
            return write_atomically(Path(path), content)
        renames = type(self.fs).mv is not fsspec.AbstractFileSystem.mv
        parent, name = posixpath.split(path)
        target = f"{parent}/.{name}.{secrets.token_hex(4)}.tmp" if renames else path
        self.fs.makedirs(parent, exist_ok=True)
        try:
            if isinstance(content, bytes):
                self.fs.pipe_file(target, content)
            else:
                self.fs.put_file(str(content), target)
            if renames:
                self.fs.mv(target, path)
        except BaseException:
            if renames:
                with suppress(Exception):  # the error that led here is the one to raise
                    self.fs.rm_file(target)
            raise

    def _connect(self) -> None:
        """Open it; fsspec keeps it for all stores of this thread with the same options."""
        try:
            with self._asking(None):
                self._client, self.root = self._opened()
                clients.prepare(self._client, self._timeout)
        except ImportError as error:
            extra = clients.extra_of(self._given)
            install = f"pip install 'rl-research[{extra}]'" if extra else str(error)
            raise ConfigError(f"storage.url={self.url}: install its client: {install}") from None

    def _opened(self) -> tuple[Any, str]:
        """Return the file system that keeps what the URL names, and the path there.

        In a chain, caches and folders are passed by: manifests and leases have to be read as they are
        now, and what is watched is the client itself.
        """
        fs, root = self._in_time(lambda _: fsspec.url_to_fs(self._given, **self._options))
        while isinstance(fs, CachingFileSystem | DirFileSystem):
            link: Any = fs
            root = fsspec_private.full_path(fs, root) if isinstance(fs, DirFileSystem) else root
            fs = link.fs
        return fs, root

    def _forget(self) -> None:
        """Let the next operation open a new connection, where one file system is one connection."""
        if self._client is not None and not self._client.async_impl and not self.is_local:
            clients.forget(self._client)
            self._client = None

    @contextmanager
    def _asking(self, operation: str | None, name: str = "") -> Iterator[None]:
        """Turn what a client raises while it is asked to do *operation* with *name* into what is promised.

        None is to open it; for everything else it is opened first, by which the root of a chain is known.
        """
        try:
            if operation is not None and self.fs and self._is_archive and operation in ("write", "remove"):
                raise StorageError(
                    f"storage.url={self.url}: cannot {operation} {name}: an archive can only be read. "
                    "Give the URL of a folder."
                )
            yield
        except (RLResearchError, ImportError):
            raise
        except Exception as error:
            if has_hung_up(error):
                self._forget()
                lost = f"{self.url}: the connection was lost ({error})"
                raise ConnectionResetError(errno.ECONNRESET, lost) from error
            if is_transient(error):
                self._forget()
                raise
            is_plain = isinstance(error, (*_MISSING, IsADirectoryError))  # what a reader wants to know as it is
            if operation != "write" and is_plain and not says_no_bucket(error):
                raise
            if (reason := refusal(error, clients.extra_of(self._given))) is None:
                if isinstance(error, _UNUSABLE) and not _is_ours(error):
                    raise ConfigError(f"storage.url={self.url}: {self._unusable(error)}") from None
                raise
            what = f"{operation or 'reach'} {name or 'it'}"
            raise StorageError(f"storage.url={self.url}: cannot {what}: {reason}") from None

    def _unusable(self, error: Exception) -> str:
        """Return what a client has said of its URL and options, with the remedy."""
        _log.debug("said by the client of %s", self.url, exc_info=error)
        if clients.extra_of(self._given) == "azure":
            hint = (
                "Name the account: storage.options.account_name=NAME, AZURE_STORAGE_ACCOUNT_NAME or "
                "AZURE_STORAGE_CONNECTION_STRING."
            )
        elif self._has_options:
            hint = "Check storage.options: each has to be of the kind that the client takes."
        else:
            hint = (
                "Give a URL such as s3://bucket/runs, gs://bucket/runs, az://container/runs, "
                "file:///data/runs or a path."
            )
        return f"{masked(in_a_line(error)).rstrip('.!')}. {hint}"


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
    value = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime.datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)).timestamp()
    return Entry(int(info["size"] or 0), float(value) if isinstance(value, int | float) else None)


def _is_ours(error: BaseException) -> bool:
    """Return whether *error* was raised by a line of this package: a bug, which shows its traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or str(trace.tb_frame.f_globals.get("__name__")).startswith("rl_research.")
