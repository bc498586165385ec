"""The servers that other tests stand on: what they are given lies in their folder, and faults are real."""

from __future__ import annotations

import fsspec
import paramiko
import pytest
import requests
from faults import Faults, faults_before
from servers import Server

KINDS = ["s3", "gcs", "sftp"]


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the servers."""
    found: Server = request.getfixturevalue(request.param)
    return found


def _opened(server: Server, path: str, **more: object) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, root = fsspec.url_to_fs(server.url(path), **server.options, **more)
    return fs, str(root)


def test_a_server_keeps_what_it_is_given(server: Server) -> None:
    """What a client writes lies as a file in the server's folder, under its own name."""
    server.bucket("kept")
    fs, root = _opened(server, "kept/with space/ü")
    if server.kind == "sftp":
        fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/one", b"bytes")
    assert fs.cat_file(f"{root}/one") == b"bytes"
    assert server.files("kept")["with space/ü/one"] == b"bytes"


def test_a_server_comes_back_on_its_port(s3: Server) -> None:
    """Stopped, it refuses connections; started again, it has what it had."""
    s3.bucket("again")
    fs, root = _opened(s3, "again")
    fs.pipe_file(f"{root}/one", b"bytes")
    s3.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{s3.port}", timeout=5)
    s3.start()
    assert fs.cat_file(f"{root}/one") == b"bytes"


@pytest.fixture
def faults(s3: Server) -> Faults:  # type: ignore[misc]  # a generator, as fixtures are
    """A proxy before the S3 server, with one object of 100,000 bytes behind it."""
    (s3.bucket("faulty") / "one").write_bytes(bytes(100_000))
    with faults_before(s3) as found:
        yield found


def _get(faults: Faults) -> requests.Response:
    """A request without a signature, which the server answers with 400; what matters is the proxy."""
    return requests.get(f"http://127.0.0.1:{faults.port}/faulty/one", timeout=3)


def test_without_a_fault_everything_passes(faults: Faults) -> None:
    """The proxy changes nothing of what a client and its server say to each other."""
    fs, root = _opened(faults.server.at(faults.port), "faulty")
    assert fs.cat_file(f"{root}/one") == bytes(100_000)
    fs.pipe_file(f"{root}/big", bytes(12 << 20))
    assert faults.server.files("faulty")["big"] == bytes(12 << 20)
    assert faults.requests["GET"] == 1
    assert faults.sent >= 12 << 20


def test_each_fault_is_what_it_says(faults: Faults) -> None:
    """Refusal, reset, status, hanging: as a client sees them, for as many requests as asked for."""
    faults.fail("reset", times=1)
    with pytest.raises(requests.ConnectionError, match="reset"):
        _get(faults)
    faults.fail("status", status=503, code="SlowDown", times=1)
    answer = _get(faults)
    assert (answer.status_code, "<Code>SlowDown</Code>" in answer.text) == (503, True)
    faults.fail("hang", times=1)
    with pytest.raises(requests.ReadTimeout):
        requests.get(f"http://127.0.0.1:{faults.port}/", timeout=0.3)
    assert _get(faults).status_code == 400
    faults.refuse()
    with pytest.raises(requests.ConnectionError, match="refused"):
        _get(faults)
    faults.accept()
    assert _get(faults).status_code == 400
    assert faults.requests["GET"] == 5


def test_bodies_are_cut_and_spoilt(faults: Faults) -> None:
    """A body that is cut, reset or changed on its way is so by exactly as many bytes."""
    newer = {"signature_version": "s3v4"}
    fs, root = _opened(faults.server.at(faults.port), "faulty", config_kwargs=newer)
    signed = fs.sign(f"{root}/one")
    faults.fail("truncate", after=1000, times=1)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="1000 bytes read"):
        requests.get(signed, timeout=3)
    faults.fail("reset_response", after=1000, times=1)
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(signed, timeout=3)
    faults.fail("corrupt", after=7, times=1)
    assert requests.get(signed, timeout=3).content == bytes(7) + b"\1" + bytes(99_992)
    faults.fail("stall", after=7, times=1)
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(signed, timeout=0.3)
    faults.fail("reset_request", after=10_000, times=1)
    with pytest.raises(requests.ConnectionError):
        requests.put(fs.sign(f"{root}/x", client_method="put_object"), data=bytes(10 << 20), timeout=3)
    assert "x" not in faults.server.files("faulty")


def test_a_connection_that_is_no_http_can_be_reset(sftp: Server) -> None:
    """Before an SFTP server a connection is one request."""
    sftp.bucket("faulty")
    with faults_before(sftp) as faults:
        fs, root = _opened(sftp.at(faults.port), "faulty")
        fs.pipe_file(f"{root}/one", b"bytes")
        assert faults.requests["CONNECT"] == 1
        faults.refuse()
        with pytest.raises((OSError, EOFError, paramiko.SSHException)):
            fs.cat_file(f"{root}/one")
