"""Real servers for tests: S3 and SFTP from rclone, GCS from its emulator, each with a folder of its own.

What a server holds are plain files of that folder, so that a test can look at them without any client.
Azure's is Azurite, which make installs where npm is; it keeps a database of its own, and
is asked through Microsoft's client.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

_PROGRAMS = Path(sys.executable).parent
_REMEMBERED = "20ms"  # how long rclone believes a listing; with 0s it spins, seconds for each write
_PATIENCE = 30.0  # seconds until a server has to answer


@dataclass
class Server:
    """A server on 127.0.0.1: how to reach it, and the folder that holds what it is given."""

    kind: str  # s3, gcs, sftp or az
    folder: Path
    port: int
    variables: Mapping[str, str]  # what the environment says: credentials, and no developer's own
    _process: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)
    _arguments: tuple[str, ...] = ()

    def url(self, path: str) -> str:
        """The URL of *path*, which is a bucket and a prefix."""
        if self.kind == "sftp":
            return f"sftp://127.0.0.1:{self.port}/{path}"
        return f"{'gs' if self.kind == 'gcs' else self.kind}://{path}"

    @property
    def options(self) -> dict[str, Any]:
        """The fsspec options that are no secret; credentials come from `variables`. Azure's are one."""
        if self.kind == "az":
            return {"connection_string": self._connection_string}
        endpoint = f"http://127.0.0.1:{self.port}"
        if self.kind == "s3":
            return {"endpoint_url": endpoint}
        if self.kind == "gcs":
            return {"endpoint_url": endpoint, "token": "anon", "project": "test"}
        return {
            "username": "tester",
            "key_filename": str(self.folder.with_name("sftp_key")),
            "allow_agent": False,
            "look_for_keys": False,
        }

    def overrides(self, path: str) -> list[str]:
        """The same as words of the command line."""
        options = [f"storage.options.{k}={_word(v)}" for k, v in self.options.items()]
        return [f"storage.url='{self.url(path)}'", *options]

    def at(self, port: int) -> Server:
        """The same server, reached through *port* (a `Faults` proxy's)."""
        return replace(self, port=port)

    @property
    def _connection_string(self) -> str:
        name, _, key = self.variables["AZURITE_ACCOUNTS"].partition(":")
        endpoint = f"http://127.0.0.1:{self.port}/{name}"
        return f"DefaultEndpointsProtocol=http;AccountName={name};AccountKey={key};BlobEndpoint={endpoint};"

    def container(self, name: str) -> Any:
        """Microsoft's own client of the container *name* in Azure."""
        from azure.storage.blob import ContainerClient

        return ContainerClient.from_connection_string(self._connection_string, name)

    def bucket(self, name: str) -> Path:
        """Make the bucket *name*, unless it is there, and return the folder that holds its files.

        A file that a test puts there is an object to S3 and SFTP; GCS and Azure keep lists of their own.
        """
        folder = self.folder / name
        if self.kind == "az":
            if not (container := self.container(name)).exists():
                container.create_container()
            return folder
        if self.kind == "gcs":
            _post(self.port, "/storage/v1/b?project=test", {"name": name})
            return self.folder / ".cloudstorage" / name
        if not folder.is_dir():
            folder.mkdir(parents=True)
            time.sleep(0.05)  # until the server's listing without it is forgotten
        return folder

    def files(self, bucket: str) -> dict[str, bytes]:
        """Every file in the bucket *bucket*, by its path there, read without any client."""
        if self.kind == "az":
            container = self.container(bucket)
            names = [blob.name for blob in container.list_blobs()]
            return {name: container.download_blob(name).readall() for name in names}
        top = self.bucket(bucket)
        return {
            path.relative_to(top).as_posix(): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()
        }

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it answers."""
        log = self.folder.with_name(f"{self.kind}.log")
        with log.open("ab") as out:
            self._process.append(
                subprocess.Popen(
                    [str(_PROGRAMS / self._arguments[0]), *self._arguments[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**os.environ, **self.variables},
                )
            )
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            assert self._process[-1].poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"no answer: {log.read_text()[-2000:]}"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it; its folder stays."""
        while self._process:
            process = self._process.pop()
            process.kill()
            process.wait(10)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                if self.kind != "sftp":
                    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(connection.recv(1))
        except OSError:
            return False


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[Server]:
    """A server of *kind* (s3, gcs, sftp, az) that keeps its files in the new folder *folder*."""
    folder.mkdir(parents=True)
    server = {"s3": _s3, "gcs": _gcs, "sftp": _sftp, "az": _az}[kind](folder, free_port())
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _s3(folder: Path, port: int) -> Server:
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    return Server(
        "s3", folder, port,
        {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        },
        _arguments=(
            "rclone", "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{port}",
            "--auth-key", f"{key},{secret}", "--dir-cache-time", _REMEMBERED,
            str(folder),
        ),
    )  # fmt: skip


def _gcs(folder: Path, port: int) -> Server:
    return Server(
        "gcs", folder, port,
        {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true"},
        _arguments=(
            "gcp-storage-emulator", "-d", str(folder), "start", "-H", "127.0.0.1",
            "--port", str(port), "-q",
        ),
    )  # fmt: skip


def _sftp(folder: Path, port: int) -> Server:
    import paramiko

    key, password = paramiko.RSAKey.generate(2048), secrets.token_hex(8)
    key.write_private_key_file(str(folder.with_name("sftp_key")))
    authorized = folder.with_name("authorized_keys")
    authorized.write_text(f"{key.get_name()} {key.get_base64()}\n")
    return Server(
        "sftp", folder, port,
        {"SFTP_PASSWORD": password},
        _arguments=(
            "rclone", "serve", "sftp", "--config", os.devnull, "--addr", f"127.0.0.1:{port}",
            "--user", "tester", "--pass", password, "--authorized-keys", str(authorized),
            "--vfs-cache-mode", "writes", "--vfs-write-back", "0s", "--dir-cache-time", _REMEMBERED,
            "--cache-dir", str(folder.with_name("sftp_cache")), str(folder),
        ),
    )  # fmt: skip


def _az(folder: Path, port: int) -> Server:
    installed = Path(sys.prefix, "azurite", "node_modules", ".bin")  # by make, where npm is
    program = shutil.which("azurite-blob") or shutil.which("azurite-blob", path=installed)
    if program is None:
        pytest.skip("Azurite is not there: it takes npm, and `make install`")
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    return Server(
        "az", folder, port,
        {"AZURITE_ACCOUNTS": f"tester:{key}"},
        _arguments=(
            program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder),
            "--silent", "--disableTelemetry", "--skipApiVersionCheck",
        ),
    )  # fmt: skip


def _word(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).lower()


def _post(port: int, path: str, body: Mapping[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        status = connection.getresponse().status
        assert status in (200, 409), f"{path}: {status}"
    finally:
        connection.close()


def _fixture(kind: str, factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(kind, factory.mktemp(kind) / "files") as server, pytest.MonkeyPatch.context() as patch:
        for name in (
            "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "SSH_AUTH_SOCK",
            "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN",
        ):  # fmt: skip
            patch.delenv(name, raising=False)
        for name, value in server.variables.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server of the session's own, its credentials in the environment."""
    yield from _fixture("s3", tmp_path_factory)


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A GCS server of the session's own."""
    yield from _fixture("gcs", tmp_path_factory)


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An SFTP server of the session's own, opened by a key file."""
    yield from _fixture("sftp", tmp_path_factory)


@pytest.fixture(scope="session")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An Azure server of the session's own, where Azurite is installed."""
    yield from _fixture("az", tmp_path_factory)
