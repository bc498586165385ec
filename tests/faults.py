"""A proxy that stands before a server and does to its connections what networks and services do.

It understands as much of HTTP as it needs: the head of each request. Every request gets a connection of
its own. Before a server that does not speak HTTP (SFTP), a connection is one request.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from servers import Server, free_port

_PIECE = 1 << 16
_HEAD = 1 << 20  # bytes; a head is a few hundred


@dataclass
class Fault:
    """What is done to a request.

    ``reset``: the connection is reset at once; ``reset_request``/``reset_response``: after *after* bytes of
    that body; ``hang``: nothing is read or answered any more; ``stall``: the same after *after* bytes of the
    answer's body; ``status``: answered with *status* and *code*; ``truncate``: the answer's body ends after
    *after* bytes; ``slow``: both bodies at *rate* bytes a second; ``corrupt``/``corrupt_request``: one byte
    of the answer's (request's) body, number *after*, is another one.
    """

    kind: str
    status: int = 503
    code: str = ""
    after: int = 0
    rate: float = 1e6
    times: float = float("inf")  # how many requests it hits
    until: float = float("inf")  # on the monotonic clock
    methods: Sequence[str] = ()  # none: all
    path: str = ""  # part of the request's path
    share: float = 1.0  # of the requests that it would hit


@dataclass
class Faults:
    """The proxy before *server*; `faults_before` makes it."""

    server: Server
    port: int = field(default_factory=free_port)
    http: bool = True
    requests: Counter[str] = field(default_factory=Counter)
    paths: list[str] = field(default_factory=list)  # "METHOD /path" of each request
    sent: int = 0  # bytes that clients have sent
    received: int = 0  # bytes that clients have got

    def __post_init__(self) -> None:
        self._faults: list[Fault] = []
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._ended = threading.Event()
        self._moving = threading.Event()
        self._moving.set()

    def fail(self, kind: str, *, seconds: float | None = None, times: float = float("inf"), **how: object) -> None:
        """Do *kind* (see `Fault`) to all requests, to the first *times*, or for *seconds*."""
        until = float("inf") if seconds is None else time.monotonic() + seconds
        self._faults.append(Fault(kind, times=times, until=until, **how))  # type: ignore[arg-type]  # as given

    def clear(self) -> None:
        """Do nothing any more, and count from zero."""
        self._settle()
        self._faults.clear()
        self.requests.clear()
        self.paths.clear()
        self.sent = self.received = 0

    def _settle(self) -> None:
        """Let requests that an operation sent side by side with a failed one arrive before the next."""
        until = time.monotonic() + 2
        time.sleep(0.05)
        while self._open and time.monotonic() < until:
            time.sleep(0.01)

    def refuse(self) -> None:
        """Listen no more, so that connections are refused, and reset the open ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            _reset(connection)

    def accept(self) -> None:
        """Listen (again)."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)  # what is slow is felt soon
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def freeze(self) -> None:
        """Pass nothing on any more, also on connections that stand."""
        self._moving.clear()

    def thaw(self) -> None:
        """Pass on again what comes."""
        self._moving.set()

    def close(self) -> None:
        """End it."""
        self._ended.set()
        self._moving.set()
        self.refuse()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            head, body = _read_head(client) if self.http else (b"CONNECT /", b"")
            if head:
                self._handle(client, head, body)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()

    def _handle(self, client: socket.socket, head: bytes, body: bytes) -> None:
        method, path = head.split(b" ", 2)[:2]
        fault = self._next_fault(method.decode(), path.decode())
        kind = fault.kind if fault else ""
        if kind == "reset":
            _reset(client)
        elif kind == "hang":
            self._ended.wait()
        elif fault is not None and kind == "status":
            client.sendall(self._answer(fault, method))
            client.shutdown(socket.SHUT_WR)
            client.settimeout(2)
            while client.recv(_PIECE):
                pass
        else:
            self._forward(client, head, body, fault)

    def _next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests[method] += 1
            self.paths.append(f"{method} {path}")
            for fault in self._faults:
                hit = (
                    (not fault.methods or method in fault.methods)
                    and fault.path in path
                    and self._random.random() < fault.share
                )
                if hit and fault.times > 0 and time.monotonic() < fault.until:
                    fault.times -= 1
                    return fault
        return None

    def _answer(self, fault: Fault, method: bytes) -> bytes:
        code = fault.code or "Error"
        if code == "html":
            body, kind = b"<html>upstream error</html>", "text/html"
        elif self.server.kind == "gcs":
            text = f'{{"error": {{"code": {fault.status}, "message": "{code}", "errors": []}}}}'
            body, kind = text.encode(), "application/json"
        else:
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
            body, kind = text.encode(), "application/xml"
        head = (
            f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == b"HEAD" else body)

    def _forward(self, client: socket.socket, head: bytes, body: bytes, fault: Fault | None) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), 10) as upstream:
            upstream.settimeout(None)
            if self.http:
                upstream.sendall(_one_request(head))
            back = threading.Thread(target=self._pump_back, args=(upstream, client, fault), daemon=True)
            back.start()
            self._pump(client, upstream, fault, request=True, body=body)
            back.join()

    def _pump_back(self, upstream: socket.socket, client: socket.socket, fault: Fault | None) -> None:
        try:
            if self.http:
                while True:  # an interim answer (100 Continue) comes before the real one
                    head, body = _read_head(upstream)
                    client.sendall(head)
                    if not head.startswith(b"HTTP/1.1 100"):
                        break
                    if body:
                        upstream = _Prefixed(upstream, body)  # type: ignore[assignment]  # reads like one
            else:
                body = b""
            self._pump(upstream, client, fault, request=False, body=body)
        except OSError:
            pass
        finally:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _pump(
        self, source: socket.socket, target: socket.socket, fault: Fault | None, *, request: bool, body: bytes
    ) -> None:
        passed = 0
        try:
            while piece := body or source.recv(_PIECE):
                body = b""
                self._moving.wait()
                piece, goes_on = self._spoilt(piece, passed, fault, target, source, request)
                target.sendall(piece)
                passed += len(piece)
                with self._lock:
                    if request:
                        self.sent += len(piece)
                    else:
                        self.received += len(piece)
                if not goes_on:
                    break
            if request:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)

    def _spoilt(
        self,
        piece: bytes,
        passed: int,
        fault: Fault | None,
        target: socket.socket,
        source: socket.socket,
        request: bool,
    ) -> tuple[bytes, bool]:
        """*piece* as it is passed on, and whether there is more to come."""
        if fault is None:
            return piece, True
        client = source if request else target
        ends = {"reset_request": request, "reset_response": not request, "truncate": not request,
                "stall": not request}  # fmt: skip
        if ends.get(fault.kind) and passed + len(piece) > fault.after:
            piece = piece[: max(0, fault.after - passed)]
            if fault.kind == "stall":
                target.sendall(piece)
                while client.fileno() != -1 and not self._ended.wait(0.02):
                    pass
                raise OSError("given up")
            if fault.kind.startswith("reset"):
                if not request:
                    target.sendall(piece)
                _reset(client)
                raise OSError("reset")
            return piece, False
        if fault.kind == ("corrupt_request" if request else "corrupt"):
            at = fault.after - passed
            if 0 <= at < len(piece):
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
        if fault.kind == "slow":
            self._ended.wait(len(piece) / fault.rate)
        return piece, True


class _Prefixed:
    """A socket that has been read a little too far."""

    def __init__(self, inner: socket.socket, ahead: bytes):
        self._inner, self._ahead = inner, ahead

    def recv(self, size: int) -> bytes:
        ahead, self._ahead = self._ahead, b""
        return ahead or self._inner.recv(size)


@contextmanager
def faults_before(server: Server) -> Iterator[Faults]:
    """A `Faults` before *server*; reach it with ``server.at(faults.port)``."""
    faults = Faults(server, http=server.kind != "sftp")
    faults.accept()
    try:
        yield faults
    finally:
        faults.close()


def _read_head(source: socket.socket) -> tuple[bytes, bytes]:
    """The head up to its empty line, and what was read beyond it; empty if the peer has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = source.recv(_PIECE)
        if not piece or len(data) > _HEAD:
            return b"", b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _one_request(head: bytes) -> bytes:
    """*head* with the wish that the server closes the connection after its answer."""
    first, *lines = head[:-4].split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([first, *kept, b"Connection: close"]) + b"\r\n\r\n"


def _reset(connection: socket.socket) -> None:
    """Close *connection* so that the peer sees a reset."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    with suppress(OSError):
        connection.close()
