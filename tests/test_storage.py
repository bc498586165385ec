"""Bytes arrive whole or not at all, refusals say what to do, and only connection failures are retried."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec.exceptions
import httpx
import pytest
import requests
import urllib3.exceptions
from azure.core import exceptions as azure

from rl_research.errors import CheckpointDamaged, ConfigError, Interrupted, LoggingError, StorageError
from rl_research.storage import Store, is_transient
from rl_research.storage.refusals import refusal
from rl_research.system.files import sha256, write_atomically

# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("content", [b"", b"one", bytes(range(256)) * 20_000])
@pytest.mark.parametrize("as_file", [False, True])
def test_what_is_written_is_there(tmp_path: Path, content: bytes, as_file: bool) -> None:
    """Bytes or a file's bytes replace what was there, in folders that are made, and leave no leftovers."""
    source = tmp_path / "source"
    source.write_bytes(content)
    target = tmp_path / "a" / "b" / "file.bin"
    for given in (b"before", source if as_file else content):
        write_atomically(target, given)
    assert target.read_bytes() == content
    assert os.listdir(target.parent) == ["file.bin"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system of one's own, if this user may."""
    place = tmp_path / "mounted"
    place.mkdir()
    made = False

    def mount(options: str) -> Path:
        nonlocal made
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a file system")
        made = True
        return place

    yield mount
    if made:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named_and_leaves_the_old_file(mounted: Callable[[str], Path]) -> None:
    """On a full disk the former content stays, nothing half-written stays, and the error says so."""
    folder = mounted("size=64k")
    target = folder / "file.bin"
    write_atomically(target, b"before")
    with pytest.raises(StorageError) as caught:
        write_atomically(target, bytes(200_000))
    _is_one_line_with(caught.value, str(target), "the disk is full", "Free space")
    assert target.read_bytes() == b"before"
    assert os.listdir(folder) == ["file.bin"]


def test_a_read_only_file_system_is_named(mounted: Callable[[str], Path]) -> None:
    """On a read-only file system the error names the file and the reason."""
    folder = mounted("ro")
    with pytest.raises(StorageError) as caught:
        write_atomically(folder / "file.bin", b"x")
    _is_one_line_with(caught.value, str(folder / "file.bin"), "read-only", "runs_dir=PATH")


def test_a_folder_without_rights_is_named(tmp_path: Path) -> None:
    """Where one may not write, the error names the file, the reason and the remedy."""
    folder = tmp_path / "closed"
    folder.mkdir()
    if os.geteuid() == 0:
        if subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
            pytest.skip("root writes everywhere here, and the file system knows no chattr")
    else:
        folder.chmod(0o500)
    try:
        with pytest.raises(StorageError) as caught:
            write_atomically(folder / "file.bin", b"x")
    finally:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-i", folder], check=True)
        folder.chmod(0o700)
    _is_one_line_with(caught.value, str(folder / "file.bin"), "no right", "runs_dir=PATH")


@pytest.mark.parametrize("below", ["file.bin", "deeper/file.bin"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    """A path below a file is refused with the reason, not with a bare NotADirectoryError."""
    (tmp_path / "file").write_bytes(b"")
    target = tmp_path / "file" / below
    with pytest.raises(StorageError) as caught:
        write_atomically(target, b"x")
    _is_one_line_with(caught.value, str(target), "a file stands where a folder is needed")


def _is_one_line_with(error: Exception, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    for word in words:
        assert word in text


# ---------------------------------------------------------------- stores


@pytest.fixture(params=["path", "file", "memory", "unicode"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind that needs no server."""
    return {
        "path": lambda: Store(tmp_path / "store"),
        "file": lambda: Store(f"file://{tmp_path}/store"),
        "memory": lambda: Store(f"memory://{tmp_path.name}/store"),
        "unicode": lambda: Store(tmp_path / "läufe mit leerzeichen" / "试验"),
    }[request.param]()


def test_a_store_keeps_what_it_is_given(store: Store, tmp_path: Path) -> None:
    """Write, put, read, get, size, folders and remove agree with each other on every kind of store."""
    source = tmp_path / "source"
    source.write_bytes(b"put")
    store.write("a/one", b"written")
    store.put_files({"b/two": source})
    assert (store.read("a/one"), store.read("b/two")) == (b"written", b"put")
    assert (store.size("a/one"), store.size("a/none"), store.size("none/one")) == (7, None, None)
    assert store.folders() == ["a", "b"]
    assert store.get("b/two", tmp_path / "new" / "copy") == sha256(source)
    assert (tmp_path / "new" / "copy").read_bytes() == b"put"
    store.remove("a")
    store.remove("a")
    assert store.folders() == ["b"]
    with pytest.raises(FileNotFoundError):
        store.read("a/one")


def test_an_empty_store_has_no_folders(store: Store) -> None:
    """A place where nothing has been written yet lists nothing and raises nothing."""
    assert store.folders() == []
    assert store.folders("deeper") == []


def test_an_address_opens_from_anywhere(store: Store) -> None:
    """The URL of a name opens the same bytes through fsspec alone."""
    store.write("a/one", b"x")
    with fsspec.open(store.address("a/one"), "rb") as opened:
        assert opened.read() == b"x"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("nosuch://bucket/x", "Give a URL such as s3://bucket/runs"),
        ("s3://bucket/runs", "pip install 'rl-research[s3]'"),
        ("gs://bucket/runs", "pip install 'rl-research[gcs]'"),
        ("az://container/runs", "pip install 'rl-research[azure]'"),
        ("abfss://container/runs", "pip install 'rl-research[azure]'"),
    ],
)
def test_a_url_that_cannot_be_opened_says_why(url: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown scheme or a client that is not installed is one line with its remedy."""
    for client, scheme in (("s3fs", "s3"), ("gcsfs", "gs"), ("adlfs", "az"), ("adlfs", "abfss")):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
        monkeypatch.setitem(sys.modules, client, None)
    with pytest.raises(ConfigError) as caught:
        Store(url)
    _is_one_line_with(caught.value, f"storage.url={url}", hint)


# ---------------------------------------------------------------- what is worth a retry


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _caught(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # whatever it is, it is judged next
        call()
    return caught.value


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers ``/N`` with status N and hangs up on everything else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's form
            if self.path[1:].isdigit():
                self.send_response(int(self.path[1:]))
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.path == "/short":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"short")
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join(10)


CLIENTS: dict[str, Callable[[str], Any]] = {
    "urllib": lambda url: urllib.request.urlopen(url, timeout=5).read(),
    "requests": lambda url: requests.get(url, timeout=5).raise_for_status(),
    "httpx": lambda url: httpx.get(url, timeout=5, trust_env=False).raise_for_status(),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_closed_port_is_a_connection_failure(client: str) -> None:
    """Nobody listening is transient, however the client wraps it."""
    assert is_transient(_caught(lambda: CLIENTS[client](f"http://127.0.0.1:{_closed_port()}/")))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_hangs_up_is_a_connection_failure(server: str, client: str) -> None:
    """A connection closed without an answer, or within it, is transient."""
    assert is_transient(_caught(lambda: CLIENTS[client](f"{server}/hang-up")))
    assert is_transient(_caught(lambda: CLIENTS[client](f"{server}/short")))


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("status", "transient"),
    [(400, False), (401, False), (403, False), (404, False), (408, True), (412, False), (429, True),
     (500, True), (502, True), (503, True), (504, True)],
)  # fmt: skip
def test_the_status_decides(server: str, client: str, status: int, transient: bool) -> None:
    """A refusal by status fails at once; an overloaded or broken server is worth another try."""
    assert is_transient(_caught(lambda: CLIENTS[client](f"{server}/{status}"))) is transient


def test_a_name_that_cannot_be_resolved_is_a_connection_failure() -> None:
    """A failing name server looks like this, bare and wrapped."""
    error = _caught(lambda: socket.getaddrinfo("no-such-host.invalid", 80))
    assert isinstance(error, socket.gaierror)
    assert is_transient(error)
    assert is_transient(_caught(lambda: CLIENTS["urllib"]("http://no-such-host.invalid/")))


def test_a_silent_server_is_a_connection_failure() -> None:
    """A read that times out is transient in every client."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert is_transient(_caught(lambda: urllib.request.urlopen(url, timeout=0.05)))
        assert is_transient(_caught(lambda: requests.get(url, timeout=0.05)))
        assert is_transient(_caught(lambda: httpx.get(url, timeout=0.05, trust_env=False)))


async def _too_slow() -> None:
    await asyncio.wait_for(asyncio.sleep(10), 0.001)


def test_an_asyncio_timeout_is_a_connection_failure() -> None:
    """What fsspec's own loop raises when it waits too long is transient."""
    assert is_transient(_caught(lambda: asyncio.run(_too_slow())))


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (BrokenPipeError(), True),
        (TimeoutError(), True),
        (http.client.RemoteDisconnected("closed"), True),
        (http.client.IncompleteRead(b"half"), True),
        (fsspec.exceptions.FSTimeoutError(), True),
        (OSError(errno.ENETUNREACH, "unreachable"), True),
        (OSError(errno.EHOSTUNREACH, "unreachable"), True),
        (OSError(errno.EBUSY, "SlowDown"), True),
        (urllib3.exceptions.ProtocolError("broken"), True),
        (urllib3.exceptions.ReadTimeoutError(None, None, "slow"), True),  # type: ignore[arg-type]
        (ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol"), True),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EINVAL, "invalid"), False),
        (OSError("Forbidden: bucket"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (FileExistsError(), False),
        (IsADirectoryError(), False),
        (ValueError("a bug"), False),
        (KeyError("a bug"), False),
        (ZeroDivisionError(), False),
        (AssertionError(), False),
        (MemoryError(), False),
        (KeyboardInterrupt(), False),
        (SystemExit(503), False),
        (asyncio.CancelledError(), False),
        (ConfigError("wrong"), False),
        (CheckpointDamaged("bad"), False),
        (Interrupted("stop"), False),
        (LoggingError("no"), False),
        (StorageError("the disk is full"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_the_kind_of_failure_decides(error: BaseException, transient: bool) -> None:
    """Connections and timeouts are transient; refusals, bugs and our own errors are not."""
    assert is_transient(error) is transient


def _lookalike(module: str, *names: str) -> type[Exception]:
    """An exception class as an optional client defines it, bases first."""
    made: type[Exception] = Exception
    for name in names:
        made = type(name, (made,), {"__module__": module})
    return made


CLIENT_ERROR = _lookalike("botocore.exceptions", "ClientError")


def _answered(status: int, code: str) -> Exception:
    error = CLIENT_ERROR(code)
    error.response = {  # type: ignore[attr-defined]
        "Error": {"Code": code},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return error


def _because(error: BaseException, *causes: BaseException) -> BaseException:
    """*error* raised from the first of *causes*, that one from the next."""
    for outer, inner in zip((error, *causes), causes, strict=False):
        outer.__cause__ = inner
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (_lookalike("aiohttp.client_exceptions", "ClientConnectionError", "ClientOSError")(), True),
        (_lookalike("aiohttp.client_exceptions", "ClientPayloadError")(), True),
        (_lookalike("aiohttp.client_exceptions", "InvalidURL")(), False),
        (_lookalike("botocore.exceptions", "HTTPClientError", "ReadTimeoutError")(), True),
        (_lookalike("botocore.exceptions", "ConnectionError", "EndpointConnectionError")(), True),
        (_lookalike("botocore.exceptions", "NoCredentialsError")(), False),
        (_lookalike("mine.exceptions", "ClientConnectionError")(), False),
        (_because(OSError(errno.EBUSY, "SlowDown"), _answered(503, "SlowDown")), True),
        (_because(OSError(errno.EREMOTEIO, "x"), _answered(500, "InternalError")), True),
        (_because(OSError(errno.EIO, "x"), _answered(429, "TooManyRequests")), True),
        (_because(OSError(errno.EINVAL, "x"), _answered(400, "RequestTimeout")), True),
        (_because(OSError(errno.EIO, "x"), _answered(507, "InsufficientStorage")), False),
        (_because(OSError(errno.EINVAL, "x"), _answered(412, "PreconditionFailed")), False),
        (_because(PermissionError("AccessDenied"), _answered(403, "AccessDenied")), False),
        (_because(FileNotFoundError("NoSuchKey"), _answered(404, "NoSuchKey")), False),
        (
            _because(
                fsspec.exceptions.FSTimeoutError(), TimeoutError(), asyncio.CancelledError()
            ),
            True,
        ),
    ],
)  # fmt: skip
def test_the_object_stores_errors_are_known(error: BaseException, transient: bool) -> None:
    """What s3fs and gcsfs raise under faults is judged by its own words, without importing either."""
    assert is_transient(error) is transient


@pytest.mark.parametrize(("code", "transient"), [(503, True), (429, True), (401, False), (404, False)])
def test_a_code_of_gcs_decides(code: int, transient: bool) -> None:
    """Google's client carries the status in `code`, as a number or as text."""
    error = _lookalike("gcsfs.retry", "HttpError")()
    for form in (code, str(code)):
        error.code = form  # type: ignore[attr-defined]
        assert is_transient(error) is transient


class _AzureAnswer:
    """What Azure's client hands its exceptions as the response."""

    headers: dict[str, str] = {}  # noqa: RUF012  # read only

    def __init__(self, status: int):
        self.status_code, self.reason = status, "because"


def _bad_certificate() -> Exception:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"  # as OpenSSL does
    return error


def _azure(kind: type[Exception], status: int, code: str) -> Exception:
    error = kind(message="line one\nline two", response=_AzureAnswer(status))
    error.error_code = code  # type: ignore[attr-defined]  # as azure-storage does
    return error


@pytest.mark.parametrize(
    ("error", "transient", "reason"),
    [
        (azure.ServiceRequestError("cannot connect"), True, ""),
        (azure.ServiceRequestTimeoutError("no connection"), True, ""),
        (azure.ServiceResponseError("reset"), True, ""),
        (azure.ServiceResponseTimeoutError("silent"), True, ""),
        (azure.IncompleteReadError("cut"), True, ""),
        (_azure(azure.HttpResponseError, 503, "ServerBusy"), True, ""),
        (_azure(azure.HttpResponseError, 500, "InternalError"), True, ""),
        (_azure(azure.HttpResponseError, 429, "TooManyRequests"), True, ""),
        (_azure(azure.HttpResponseError, 507, "InsufficientStorage"), False, "full"),
        (_azure(azure.ClientAuthenticationError, 401, "InvalidAuthenticationInfo"), False, "accepted"),
        (_azure(azure.ClientAuthenticationError, 403, "AuthenticationFailed"), False, "not accepted"),
        (_azure(azure.HttpResponseError, 403, "AuthorizationFailure"), False, "access is denied"),
        (_azure(azure.ResourceNotFoundError, 404, "ContainerNotFound"), False, "no such bucket"),
        (_azure(azure.ResourceModifiedError, 412, "ConditionNotMet"), False, "refused"),
        (azure.ClientAuthenticationError("none\nof them"), False, "no credentials"),
        (
            _because(azure.ServiceRequestError("tls"), _bad_certificate()),
            False, "certificate",
        ),
        (_because(RuntimeError("Failed to remove"), azure.ServiceResponseError("reset")), True, ""),
    ],
)  # fmt: skip
def test_azures_own_errors_are_known(error: Exception, transient: bool, reason: str) -> None:
    """The real classes of Azure's client: what waiting mends is tried again, all else is a line."""
    assert is_transient(error) is transient
    if not transient:
        line = refusal(error, "azure")
        assert line is not None
        assert reason in line
        assert "\n" not in line
        by_key = ("accepted", "not accepted", "access is denied", "no credentials")
        assert ("AZURE_STORAGE" in line) == (reason in by_key)


@pytest.mark.parametrize(
    "error",
    [
        OSError("write /srv/.model.zip.tmp: no space left on device"),  # rclone's SFTP server
        OSError("Disk quota exceeded"),
        OSError(errno.ENOSPC, "No space left on device"),
        _because(OSError(errno.EIO, "x"), _answered(507, "XMinioStorageFull")),
        _because(OSError(errno.EINVAL, "x"), _answered(400, "XMinioAdminBucketQuotaExceeded")),
        _because(PermissionError("x"), _answered(403, "QuotaExceeded")),
    ],
    ids=str,
)
def test_a_full_store_is_named_whatever_it_says(error: Exception) -> None:
    """No space and no quota are one reason with one remedy, and waiting does not mend them."""
    assert not is_transient(error)
    line = refusal(error, "sftp")
    assert line is not None
    assert line.startswith("the store is full")
    assert line.endswith("Free space or raise the quota there.")


def test_a_cause_deep_down_is_found() -> None:
    """A wrapper that says nothing leaves the verdict to its cause or context."""
    assert is_transient(_because(RuntimeError("task failed"), ValueError(), ConnectionResetError()))
    try:
        try:
            raise ConnectionResetError
        except ConnectionResetError:
            raise RuntimeError("while handling it")  # noqa: B904  # the context is what is tested
    except RuntimeError as error:
        assert is_transient(error)


def test_a_suppressed_context_does_not_count() -> None:
    """After ``raise … from None`` the error stands for itself."""
    try:
        try:
            raise ConnectionResetError
        except ConnectionResetError:
            raise RuntimeError("no matter why") from None
    except RuntimeError as error:
        assert not is_transient(error)


def test_the_outermost_verdict_counts() -> None:
    """A refusal is a refusal even when a connection failure came before it."""
    assert not is_transient(_because(PermissionError("denied"), ConnectionResetError()))
    assert is_transient(_because(ConnectionResetError(), PermissionError("denied")))


def test_a_cycle_of_causes_ends() -> None:
    """Exceptions that name each other as cause are judged, not followed for ever."""
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert not is_transient(one)


def test_a_wrong_certificate_is_no_connection_failure_in_any_client() -> None:
    """Waiting mends no certificate, though `requests` calls it a connection error."""
    wrong = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    assert not is_transient(urllib.error.URLError(wrong))
    assert not is_transient(_because(requests.exceptions.SSLError(wrong), wrong))


def test_our_own_errors_are_never_transient() -> None:
    """What this package raises on purpose says what to do, and waiting is not it."""
    assert not is_transient(_because(StorageError("refused"), ConnectionResetError()))
    assert not is_transient(_because(CheckpointDamaged("bad"), TimeoutError()))
