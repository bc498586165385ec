"""A TCP proxy in front of a server on this machine, for outages: down, hanging, cut off, slow.

with TcpProxy(server.port) as proxy:
    client_uses(proxy.url)
    proxy.hang()   # connections are taken, bytes are not
    proxy.up()
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

_CHUNK = 16384


class TcpProxy:
    """Carries bytes between a free port of 127.0.0.1 and *target*, a port, from ``with`` to its end."""

    def __init__(self, target: int):
        self.target = target
        self.carried = 0  # bytes from clients to the server
        self.connections = 0
        self._cut_at: int | None = None
        self._rate: float | None = None
        self._flows = threading.Event()
        self._flows.set()
        self._open: set[socket.socket] = set()
        self._lock = threading.RLock()
        self._closed = False
        self._listener: socket.socket | None = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> TcpProxy:
        self._accept(self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.down()
        self._flows.set()

    def down(self) -> None:
        """Cut every connection and refuse new ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            for connection in ([listener] if listener else []) + list(self._open):
                _close(connection)
            self._open.clear()

    def hang(self) -> None:
        """Take connections and carry nothing, in either direction."""
        self._flows.clear()
        self._come_back()

    def up(self) -> None:
        """Carry everything again; what hung goes on."""
        self._cut_at = self._rate = None
        self._flows.set()
        self._come_back()

    def cut_after(self, size: int) -> None:
        """Go down once clients have sent *size* more bytes; stay down until `up`."""
        self._cut_at = self.carried + size

    def slow(self, rate: float) -> None:
        """Carry at most *rate* bytes a second on each connection."""
        self._rate = rate

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        return listener

    def _come_back(self) -> None:
        with self._lock:
            if self._listener is None and not self._closed:
                self._listener = self._listen(self.port)
                self._accept(self._listener)

    def _accept(self, listener: socket.socket | None) -> None:
        threading.Thread(target=self._take, args=(listener,), daemon=True).start()

    def _take(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # down
            with self._lock:
                self.connections += 1
                self._open.add(client)
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._flows.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            _close(client)
            return
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        pumps = [(client, server, True), (server, client, False)]
        for pump in pumps:
            threading.Thread(target=self._pump, args=pump, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._flows.wait()
                if self._rate:
                    time.sleep(len(data) / self._rate)
                if from_client and self._is_cut(len(data)):
                    self.down()
                    break
                sink.sendall(data)
        for connection in (source, sink):
            _close(connection)
            with self._lock:
                self._open.discard(connection)

    def _is_cut(self, size: int) -> bool:
        with self._lock:
            self.carried += size
            return self._cut_at is not None and self.carried >= self._cut_at


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
