"""What a store's failures come to: worth another try, or one line that names the remedy; in seconds."""

from __future__ import annotations

import random
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Faults, faults_before
from servers import Server, free_port

from rl_research.errors import ConfigError, StorageError
from rl_research.storage import hiccups
from rl_research.storage.hiccups import TRIES
from rl_research.storage.store import Store
from rl_research.storage.transient import is_transient

TIMEOUT = 20.0  # seconds; nothing that is tested here should wait for it on a busy machine
SHORT = 1.0  # seconds, where waiting for it is the test
BOUND = 15.0  # seconds that no operation may pass
BIG = 20 << 20  # bytes: three parts

OPERATIONS: dict[str, Callable[[Store, Path], Any]] = {
    "put": lambda store, folder: store.put_files({"a/put": folder / "small"}),
    "put big": lambda store, folder: store.put_files({"a/big": folder / "big"}),
    "write": lambda store, folder: store.write("a/written", b"x"),
    "read": lambda store, folder: store.read("a/there"),
    "get": lambda store, folder: store.get("a/there", folder / "got"),
    "size": lambda store, folder: store.size("a/there"),
    "sizes": lambda store, folder: store.sizes("a"),
    "folders": lambda store, folder: store.folders(),
    "remove": lambda store, folder: store.remove("a/there"),
}
WRITES = ("put", "put big", "write")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are made again at once: this file is about which and how often, `test_hiccups` about when."""
    monkeypatch.setattr(hiccups, "PAUSE", 0.001)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small and a big file."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "small").write_bytes(b"x" * 1000)
    (folder / "big").write_bytes(bytes(BIG))
    return folder


@pytest.fixture(params=["s3", "gcs", "sftp", "az"])
def faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
    """A proxy before each of the servers."""
    server: Server = request.getfixturevalue(request.param)
    server.bucket("failing")
    with faults_before(server) as found:
        yield found


@pytest.fixture(params=["s3", "gcs", "az"])
def object_store(request: pytest.FixtureRequest) -> Server:
    """Each of the servers that keep objects."""
    server: Server = request.getfixturevalue(request.param)
    return server


def _store(faults: Faults, bucket: str = "failing", timeout: float = TIMEOUT, **more: Any) -> Store:
    through = faults.server.at(faults.port)
    store = Store(through.url(f"{bucket}/runs"), {**through.options, **more}, timeout)
    if faults.server.kind == "s3":
        store.fs.connect()  # botocore computes for a second here, which is no failure
    return store


def _ready(faults: Faults) -> Store:
    store = _store(faults)
    store.write("a/there", b"x" * 1000)
    faults.clear()
    return store


def _cut_off(faults: Faults) -> None:
    """End what still hangs, and do no more to what comes."""
    faults.refuse()
    faults.accept()
    faults.clear()


def _error_of(call: Callable[[], Any]) -> BaseException:
    before = time.monotonic()
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is, it is judged next
        call()
    assert time.monotonic() - before < BOUND, "an operation has to fail within seconds"
    return caught.value


def _assert_refused(error: BaseException, *words: str) -> None:
    assert isinstance(error, StorageError), repr(error)
    text = str(error)
    assert "\n" not in text
    for word in words:
        assert word in text, text


# ---------------------------------------------------------------- connections


@pytest.mark.slow
def test_a_connection_that_fails_is_worth_another_try(faults: Faults, sources: Path) -> None:
    """Refused and reset are transient in every client and operation, after a few tries within seconds."""
    store = _ready(faults)
    for name, operation in OPERATIONS.items():
        run = lambda: operation(store, sources)  # noqa: B023, E731  # called here, several times
        faults.refuse()
        assert is_transient(_error_of(run)), name
        faults.accept()
        faults.clear()
        faults.fail("reset")
        error = _error_of(run)
        assert is_transient(error), f"{name}: {error!r}"
        assert faults.requests.total() <= TRIES * (8 if name == "put big" else 4), faults.paths
        faults.clear()
        store.write("a/there", b"x" * 1000)
        run()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["put big", "write", "get", "folders"])
def test_a_server_that_falls_silent_is_worth_another_try(faults: Faults, sources: Path, name: str) -> None:
    """What hangs is given up after the timeout, also a put, and works when the server does."""
    _ready(faults)
    impatient = _store(faults, timeout=SHORT)
    if faults.http:
        faults.fail("hang")
    else:
        faults.freeze()
    error = _error_of(lambda: OPERATIONS[name](impatient, sources))
    assert is_transient(error), repr(error)
    faults.thaw()
    _cut_off(faults)
    OPERATIONS[name](_store(faults), sources)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reset_request", "reset_response", "truncate", "stall"])
def test_a_connection_that_breaks_in_the_middle_is_worth_another_try(
    object_store: Server, sources: Path, kind: str
) -> None:
    """An upload or download that is cut within its bytes is transient, and the next one is whole."""
    object_store.bucket("failing")
    with faults_before(object_store) as faults:
        store = _store(faults)
        store.put_files({"a/big": sources / "big"})
        store = _store(faults, timeout=SHORT if kind == "stall" else TIMEOUT)
        # GCS answers so to the end of an upload that has broken; the emulator does not know it
        faults.fail("status", status=499, methods=("DELETE",))
        faults.fail(kind, after=100_000)
        if kind == "reset_request":
            error = _error_of(lambda: store.put_files({"a/again": sources / "big"}))
        else:
            error = _error_of(lambda: store.get("a/big", sources / "got"))
        assert is_transient(error), repr(error)
        _cut_off(faults)
        store = _store(faults)
        store.put_files({"a/again": sources / "big"})
        store.get("a/again", sources / "got")
        assert (sources / "got").read_bytes() == bytes(BIG)


@pytest.mark.slow
def test_a_slow_transfer_is_left_alone(object_store: Server, sources: Path) -> None:
    """While bytes move, however slowly, a transfer takes the time it needs: several times the timeout."""
    object_store.bucket("slow")
    with faults_before(object_store) as faults:
        store = _store(faults, "slow", timeout=6.0)
        # gcsfs reports whole parts only, and Azure's client sends more of them side by side
        rate = {"gcs": 3e6, "az": 0.6e6}.get(object_store.kind, 1e6)
        faults.fail("slow", rate=rate)
        before = time.monotonic()
        store.put_files({"a/big": sources / "big"})
        assert time.monotonic() - before > 6.0, "too fast to prove anything"
        assert object_store.files("slow")["runs/a/big"] == bytes(BIG)


def test_a_name_that_is_not_resolved_is_worth_another_try(s3: Server, sources: Path) -> None:
    """A name server that does not know the host now may know it later."""
    options = {**s3.options, "endpoint_url": "http://no-such-host.invalid:9"}
    store = Store("s3://bucket/runs", options, TIMEOUT)
    assert is_transient(_error_of(lambda: store.put_files({"a": sources / "small"})))


def test_a_store_that_is_down_at_first_can_be_named(s3: Server, sftp: Server) -> None:
    """Making a store asks nobody; its first operation says that the server does not answer."""
    down = free_port()
    for server in (s3.at(down), sftp.at(down)):
        store = Store(server.url("bucket/runs"), server.options, TIMEOUT)
        assert store.path("a").endswith("bucket/runs/a")
        assert is_transient(_error_of(lambda: store.write("a", b"x")))  # noqa: B023  # called here
        assert is_transient(_error_of(store.folders))


def test_a_server_that_comes_back_is_found_again(faults: Faults) -> None:
    """A store that has lost its connection works again as soon as the server does."""
    store = _store(faults)
    store.write("back", b"one")
    faults.refuse()
    assert is_transient(_error_of(lambda: store.read("back")))
    faults.accept()
    assert store.read("back") == b"one"
    assert _store(faults).read("back") == b"one"


# ---------------------------------------------------------------- answers

S3_TRANSIENT = [
    (503, "SlowDown"), (503, "ServiceUnavailable"), (503, "html"), (500, "InternalError"),
    (502, "html"), (504, "html"), (429, "TooManyRequests"), (400, "RequestTimeout"),
]  # fmt: skip
S3_REFUSED = [
    (403, "AccessDenied", "access is denied"),
    (403, "InvalidAccessKeyId", "not accepted"),
    (403, "SignatureDoesNotMatch", "not accepted"),
    (403, "RequestTimeTooSkewed", "clock"),
    (400, "ExpiredToken", "expired"),
    (400, "InvalidArgument", "InvalidArgument"),
    (401, "Unauthorized", "not accepted"),
    (404, "NoSuchBucket", "no such bucket"),
    (507, "InsufficientStorage", "full"),
]
GCS_TRANSIENT = [
    (503, "backendError"), (500, "internalError"), (429, "rateLimitExceeded"), (502, "html"),
    (408, "timeout"), (504, "html"),
]  # fmt: skip
GCS_REFUSED = [
    (401, "Invalid Credentials", "not accepted"),
    (403, "forbidden", "access is denied"),
    (400, "invalid argument", "refused"),
    (404, "notFound", "no such bucket"),
    (507, "insufficientStorage", "full"),
]

AZ_TRANSIENT = [
    (503, "ServerBusy"), (500, "InternalError"), (500, "OperationTimedOut"), (429, "TooManyRequests"),
    (502, "html"), (504, "html"),
]  # fmt: skip
AZ_REFUSED = [
    (403, "AuthenticationFailed", "not accepted"),
    (403, "AuthorizationPermissionMismatch", "access is denied"),
    (401, "InvalidAuthenticationInfo", "not accepted"),
    (403, "AccountIsDisabled", "disabled"),
    (404, "ContainerNotFound", "no such bucket"),
    (400, "InvalidInput", "refused"),
    (507, "InsufficientStorage", "full"),
]


def _requests(kind: str, name: str) -> int:
    """The most requests of an operation that is refused at its first.

    Azure's client sends four blocks side by side, and adlfs asks then whether the container is there.
    """
    return 6 if (kind, name) == ("az", "put big") else 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        *(("s3", *row) for row in S3_TRANSIENT),
        *(("gcs", *row) for row in GCS_TRANSIENT),
        *(("az", *row) for row in AZ_TRANSIENT),
    ],
)
def test_an_overloaded_server_is_worth_another_try(
    request: pytest.FixtureRequest, sources: Path, kind: str, status: int, code: str
) -> None:
    """5xx, 429 and time-outs are transient, after the tries that each request gets; the client adds none of its own."""
    server: Server = request.getfixturevalue(kind)
    server.bucket("failing")
    with faults_before(server) as faults:
        store = _ready(faults)
        for name, operation in OPERATIONS.items():
            if status == 400 and name not in WRITES:
                continue  # it is an upload that can be too slow
            faults.clear()
            faults.fail("status", status=status, code=code)
            error = _error_of(lambda: operation(store, sources))  # noqa: B023  # called here
            assert is_transient(error), f"{name}: {error!r}"
            assert faults.requests.total() <= TRIES * _requests(kind, name), f"{name}: {faults.paths}"


@pytest.mark.parametrize(
    ("kind", "status", "code", "reason"),
    [
        *(("s3", *row) for row in S3_REFUSED),
        *(("gcs", *row) for row in GCS_REFUSED),
        *(("az", *row) for row in AZ_REFUSED),
    ],
)
def test_a_refusal_is_one_line_at_once(
    request: pytest.FixtureRequest, sources: Path, kind: str, status: int, code: str, reason: str
) -> None:
    """What waiting does not mend fails after one request, naming bucket, operation, reason and remedy."""
    server: Server = request.getfixturevalue(kind)
    server.bucket("failing")
    with faults_before(server) as faults:
        store = _ready(faults)
        for name in WRITES:
            faults.clear()
            faults.fail("status", status=status, code=code)
            error = _error_of(lambda: OPERATIONS[name](store, sources))  # noqa: B023  # called here
            _assert_refused(error, f"storage.url={server.url('failing/runs')}", "write a/", reason)
            assert not is_transient(error)
            assert str(error).rstrip().endswith("."), error
            tries = TRIES if (kind, status) == ("az", 507) else 1  # Azure's client takes each 5xx for an outage
            assert faults.requests.total() <= tries * _requests(kind, name), faults.paths
            faults.clear()
            if status == 404:
                continue  # where one reads, a missing object is nothing special
            faults.fail("status", status=status, code=code)
            for reading in ("read", "size", "folders"):
                error = _error_of(lambda: OPERATIONS[reading](store, sources))  # noqa: B023  # called here
                assert isinstance(error, StorageError), f"{reading}: {error!r}"


def test_a_missing_bucket_is_named(faults: Faults, sources: Path) -> None:
    """Writing where there is no bucket says so; SFTP makes its folders."""
    if faults.server.kind == "sftp":
        pytest.skip("folders are made")
    store = _store(faults, "no-such-bucket")
    for operation in WRITES:
        error = _error_of(lambda: OPERATIONS[operation](store, sources))  # noqa: B023  # called here
        _assert_refused(error, "no-such-bucket/runs", "no such bucket", "Make it, or correct storage.url")


def test_no_credentials_is_one_line(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys the line says where they are looked for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = Store(s3.url("failing/runs"), {**s3.options, "use_ssl": False}, TIMEOUT)
    _assert_refused(_error_of(lambda: store.write("a", b"x")), "no credentials", "AWS_PROFILE")


def test_wrong_credentials_are_one_line(s3: Server, sftp: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the server does not know, and an SSH login that it refuses."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    store = Store(s3.url("failing/runs"), {**s3.options, "use_ssl": False, "cache_regions": False}, 2)
    error = _error_of(lambda: store.write("a", b"x"))
    _assert_refused(error, "not accepted", "AWS_PROFILE")
    assert "hunter2" not in str(error)
    options = {"username": "tester", "look_for_keys": False, "allow_agent": False}
    with pytest.raises(StorageError) as caught:
        Store(sftp.url("failing/runs"), {**options, "password": "hunter2"}, 2)
    _assert_refused(caught.value, "not accepted", "SSH key")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StorageError) as caught:
        Store(sftp.url("failing/runs"), options, 2)
    _assert_refused(caught.value, "no credentials", "SSH key")


SECRET = "aHVudGVyMi1hbmQtbW9yZQ=="


def test_azure_refuses_in_a_line_without_a_secret(az: Server) -> None:
    """A wrong key and a name that no container can have; the line says where keys are looked for."""
    right: str = az.options["connection_string"]
    key = right.partition("AccountKey=")[2].partition(";")[0]
    wrong = Store("az://failing/runs", {"connection_string": right.replace(key, SECRET)}, TIMEOUT)
    for operation in (lambda: wrong.write("a", b"x"), wrong.folders, lambda: wrong.read("a")):
        error = _error_of(operation)
        _assert_refused(error, "storage.url=az://failing/runs", "403", "AZURE_STORAGE_ACCOUNT_KEY")
        assert SECRET not in str(error)
    nameless = Store("az://No_Container!/runs", az.options, TIMEOUT)
    _assert_refused(_error_of(lambda: nameless.write("a", b"x")), "can have this name")


@pytest.mark.parametrize("options", [{}, {"connection_string": f"AccountKey={SECRET}"}, {"account_key": SECRET}])
def test_azure_asks_for_its_account(monkeypatch: pytest.MonkeyPatch, options: dict[str, str]) -> None:
    """Where no account is named, the line says how to name one; a key in a damaged string is not shown."""
    for name in ("CONNECTION_STRING", "ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    with pytest.raises(ConfigError, match=r"Name the account: storage\.options\.account_name") as caught:
        Store("abfs://container/runs", options, TIMEOUT)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_users_own_options_win(s3: Server) -> None:
    """Retries of the client's own are off, unless they are asked for."""
    s3.bucket("failing")
    with faults_before(s3) as faults:
        asked = {"config_kwargs": {"retries": {"total_max_attempts": 3}}}
        store = _store(faults, **asked)
        faults.fail("status", status=500, code="InternalError", times=2)
        store.write("one", b"x")
        assert faults.requests["PUT"] == 3


def test_a_corrupt_download_is_worth_another_try(s3: Server) -> None:
    """Bytes that changed on their way are noticed by the client, and fetched again by the same read."""
    s3.bucket("failing")
    with faults_before(s3) as faults:
        store = _ready(faults)
        faults.fail("corrupt", after=7, times=1, methods=("GET",))
        before = faults.requests["GET"]
        assert store.read("a/there") == b"x" * 1000
        assert faults.requests["GET"] == before + 2


# ---------------------------------------------------------------- chains

CHAINS = ["simplecache::s3://failing/runs", "dir://runs::s3://failing"]


@pytest.fixture
def s3_faults(s3: Server) -> Iterator[Faults]:
    """A proxy before the S3 server."""
    s3.bucket("failing")
    with faults_before(s3) as found:
        yield found


def _chained(faults: Faults, url: str, timeout: float = TIMEOUT) -> Store:
    store = Store(url, {"s3": faults.server.at(faults.port).options}, timeout)
    store.fs.connect()
    return store


@pytest.mark.slow
@pytest.mark.parametrize("url", CHAINS)
def test_a_chain_is_bounded_as_what_it_stands_on(s3_faults: Faults, sources: Path, url: str) -> None:
    """Every operation in a chain fails after its tries, and is given up where the server is silent."""
    store = _chained(s3_faults, url)
    store.write("a/there", b"x" * 1000)
    s3_faults.clear()
    s3_faults.fail("status", code="SlowDown")
    for name, operation in OPERATIONS.items():
        assert is_transient(_error_of(lambda: operation(store, sources))), name  # noqa: B023  # called here
    assert s3_faults.requests.total() <= 2 * TRIES * len(OPERATIONS), s3_faults.paths
    s3_faults.clear()
    s3_faults.fail("hang")
    impatient = _chained(s3_faults, url, SHORT)
    for name, operation in OPERATIONS.items():
        assert is_transient(_error_of(lambda: operation(impatient, sources))), name  # noqa: B023
    _cut_off(s3_faults)
    for operation in OPERATIONS.values():
        operation(store, sources)


def test_a_chain_that_is_down_at_first_is_written_where_it_says(sftp: Server) -> None:
    """The root of a chain is known when its server answers; what is written then goes there."""
    sftp.bucket("chained")
    with faults_before(sftp) as faults:
        faults.refuse()
        through = sftp.at(faults.port)
        url = f"dir://sub::{through.url('chained')}"
        store = Store(url, {"sftp": through.options}, TIMEOUT)
        assert is_transient(_error_of(lambda: store.write("a", b"x")))
        faults.accept()
        store.write("a", b"x")
        assert sftp.files("chained") == {"sub/a": b"x"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "stall"])
def test_an_archive_that_falls_silent_is_given_up(s3_faults: Faults, tmp_path: Path, kind: str) -> None:
    """Reading from a zip in a bucket, and opening it, ends after the timeout, and works afterwards."""
    content = random.Random(1).randbytes(BIG)
    with zipfile.ZipFile(s3_faults.server.bucket("failing") / "runs.zip", "w") as archive:
        archive.writestr("runs/a/there", content)
    time.sleep(0.3)  # the server looks at its folder every 0.1 s
    url = "zip://runs::s3://failing/runs.zip"
    options = {"s3": s3_faults.server.at(s3_faults.port).options}
    store = Store(url, options, 3.0)
    assert store.sizes("a") == {"there": BIG}
    s3_faults.fail(kind, after=10)
    for operation in (
        lambda: store.get("a/there", tmp_path / "got"),
        lambda: store.read("a/there"),
        lambda: Store(url, {**options, "skip_instance_cache": True}, 3.0).folders(),
    ):
        assert is_transient(_error_of(operation))
    _cut_off(s3_faults)
    store.get("a/there", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == content
