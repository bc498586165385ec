"""One fsspec file system: how it is opened, asked and waited for, and what its failures mean.

What waiting may mend leaves as the client raised it, within `timeout` seconds without progress; what it
does not mend leaves as a `StorageError` of one line.
"""

import errno
import logging
import posixpath
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.asyn import sync
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from rl_research.errors import ConfigError, RLResearchError, StorageError, in_a_line
from rl_research.storage import clients, fsspec_private, multipart
from rl_research.storage.hiccups import again, again_async, has_hung_up, is_hiccup
from rl_research.storage.refusals import refusal, says_no_bucket
from rl_research.storage.spelling import check_options
from rl_research.storage.stalls import Progress, unless_stalled
from rl_research.storage.transient import is_transient
from rl_research.system import Attempt, countdown, masked, without_password, write_atomically

MISSING = (FileNotFoundError, NotADirectoryError)
_PLAIN = (*MISSING, IsADirectoryError)  # what a reader wants to know as it is
_REACH, _CHANGES = "reach", ("write", "remove")
_ARCHIVES = {"zip", "tar", "libarchive"}  # opened, they read what they stand on

_UNUSABLE = (ValueError, TypeError, AttributeError, LookupError)  # of a client: what it was given makes no sense
_log = logging.getLogger(__name__)

T = TypeVar("T")


class FileSystem:
    """File system that *url* names; see `rl_research.storage.store.Store` for the arguments.

    A server that cannot be reached yet is asked again at the first operation.
    """

    def __init__(self, url: str, options: Mapping[str, Any], timeout: float):
        check_options(url, options)
        self._given = url
        self._has_options = bool(options)
        self._options = clients.bounded(url, options, timeout)
        self.timeout = timeout
        self.url = without_password(url)
        self._client: Any = None
        self.root = ""
        try:
            self._connect()
        except Exception as error:
            if not is_transient(error):
                raise
            self.root = fsspec.core.strip_protocol(url)
        self.is_local = isinstance(self._client, LocalFileSystem)

    @property
    def client(self) -> Any:
        """Object of fsspec; connects if that has not been possible before."""
        if self._client is None:
            again(self._connect)
        return self._client

    @property
    def is_async(self) -> bool:
        """Whether it works in fsspec's own event loop, where progress can be watched; object stores do."""
        return bool(self.client.async_impl)

    @property
    def is_s3(self) -> bool:
        """Whether it is S3, which has operations of its own."""
        return clients.kind_of(self.client) == "s3"

    def ask(self, method: str, *arguments: Any, **more: Any) -> Any:
        """Return what the file system's *method* returns."""
        if not self.is_async:
            return self._again(lambda _: getattr(self.client, method)(*arguments, **more))
        call = partial(fsspec_private.coroutine(self.client, method), *arguments, **more)
        # an answer that breaks off is beyond the request for s3fs; the others' requests end with the body
        whole = clients.kind_of(self.client) in clients.READ_WITHIN_REQUESTS
        return self.wait_for(lambda _: call() if whole else again_async(call))

    def put(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy local files to their paths here; each appears whole or not at all."""
        if self.is_async:
            self.wait_for(lambda progress: multipart.put_files(self.client, files, progress))
            return
        for source, path in files:
            self._again(partial(self._put_whole, path, source))

    def write(self, path: str, data: bytes) -> None:
        """Make *path* hold *data*; it appears whole or not at all."""
        if self.is_async:
            self.ask("pipe_file", path, data)
        else:
            self._again(partial(self._put_whole, path, data))

    def fetch(self, path: str, target: Path) -> None:
        """Copy *path* to the local file *target*."""
        if not self.is_async:
            self._in_time(lambda progress: self.client.get_file(path, str(target), callback=progress))
            return
        if self.is_s3:
            self.wait_for(lambda progress: multipart.get_s3_file(self.client, path, target, progress))
            return
        get_file = fsspec_private.coroutine(self.client, "get_file")
        self.wait_for(lambda progress: get_file(path, str(target), callback=progress))

    def _again(self, work: Callable[[Progress], T]) -> T:
        """Return the result of *work*, begun again after a hiccup, on a new connection."""

        def attempt() -> T:
            try:
                return self._in_time(work)
            except Exception as error:
                if is_hiccup(error):
                    self.forget()
                raise

        return again(attempt)

    def wait_for(self, work: Callable[[Progress], Awaitable[T]]) -> T:
        """Return the result of *work* on fsspec's loop; it is given up when the progress it gets stands still."""
        progress = Progress()
        result: T = sync(self.client.loop, unless_stalled, lambda: work(progress), progress, self.timeout)
        return result

    @contextmanager
    def asking(self, operation: str, name: str = "it") -> Iterator[None]:
        """Turn what a client raises while it is asked to do *operation* with *name* into what is promised."""
        try:
            if operation != _REACH:
                self._check_can(operation, name)
            yield
        except (RLResearchError, ImportError):
            raise
        except Exception as error:
            if has_hung_up(error):
                self.forget()
                raise ConnectionResetError(
                    errno.ECONNRESET, f"{self.url}: the connection was lost ({error})"
                ) from error
            if is_transient(error):
                self.forget()
                raise
            if operation != "write" and isinstance(error, _PLAIN) and not says_no_bucket(error):
                raise
            if (reason := refusal(error, clients.extra_of(self._given))) is None:
                if isinstance(error, _UNUSABLE) and not _is_ours(error):
                    raise ConfigError(f"storage.url={self.url}: {self._unusable(error)}") from None
                raise
            raise StorageError(f"storage.url={self.url}: cannot {operation} {name or 'it'}: {reason}") from None

    def _check_can(self, operation: str, name: str) -> None:
        """Connect, by which the root of a chain is known, and refuse to change an archive."""
        if isinstance(self.client, AbstractArchiveFileSystem) and operation in _CHANGES:
            raise StorageError(
                f"storage.url={self.url}: cannot {operation} {name}: an archive can only be read. "
                "Give the URL of a folder."
            )

    def _connect(self) -> None:
        """Open it; fsspec keeps it for all stores of this thread with the same options."""
        try:
            with self.asking(_REACH):
                self._client, self.root = self._opened()
                clients.prepare(self._client, self.timeout)
        except ImportError as error:
            extra = clients.extra_of(self._given)
            install = f"pip install 'rl-research[{extra}]'" if extra else str(error)
            raise ConfigError(f"storage.url={self.url}: install its client: {install}") from None

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

    def _opened(self) -> tuple[Any, str]:
        """Return the file system that keeps what the URL names, and the path there.

        In a chain, caches and folders are passed by: manifests and leases have to be read as they are
        now, and what is watched is the client itself.
        """
        is_archive = not _ARCHIVES.isdisjoint(clients.schemes(self._given))
        fs, root = self._in_time(lambda _: fsspec.url_to_fs(self._given, **self._options), is_archive=is_archive)
        while isinstance(fs, CachingFileSystem | DirFileSystem):
            link: Any = fs
            root = fsspec_private.full_path(fs, root) if isinstance(fs, DirFileSystem) else root
            fs = link.fs
        return fs, root

    def _in_time(self, work: Callable[[Progress], T], *, is_archive: bool | None = None) -> T:
        """Return the result of *work*; that of an archive on top of another client, which may hang, is given up."""
        progress = Progress()
        if not (isinstance(self._client, AbstractArchiveFileSystem) if is_archive is None else is_archive):
            return work(progress)
        attempt, before = Attempt(lambda: work(progress)), progress.value
        while not attempt.ended_within(countdown(self.timeout)):
            if progress.value == before:
                raise TimeoutError(f"no progress in {self.timeout:g} seconds")
            before = progress.value
        return attempt.result()

    def forget(self) -> None:
        """Let the next operation open a new connection, where one file system is one connection."""
        if self._client is not None and not self._client.async_impl and not self.is_local:
            clients.forget(self._client)
            self._client = None

    def _put_whole(self, path: str, content: bytes | Path, _progress: Progress | None = None) -> None:
        """Write *content* beside *path* and rename it, where the file system renames."""
        if self.is_local:
            return write_atomically(Path(path), content)
        renames = type(self.client).mv is not fsspec.AbstractFileSystem.mv
        parent, name = posixpath.split(path)
        target = f"{parent}/.{name}.{secrets.token_hex(4)}.tmp" if renames else path
        self.client.makedirs(parent, exist_ok=True)
        try:
            if isinstance(content, bytes):
                self.client.pipe_file(target, content)
            else:
                self.client.put_file(str(content), target)
            if renames:
                self.client.mv(target, path)
        except BaseException:
            if renames:
                with suppress(Exception):  # the error that led here is the one to raise
                    self.client.rm_file(target)
            raise


def _is_ours(error: BaseException) -> bool:
    """Return whether *error* was raised by a line of this package: a bug, which shows its traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or str(trace.tb_frame.f_globals.get("__name__")).startswith("rl_research.")
