"""Checkpoints in real stores: S3, GCS, SFTP and Azure servers, looked at without our client."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import faults_before
from helpers import environment, tiny
from servers import Server, serving

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import hide_secrets, hide_secrets_of, load_config, refuse_secrets
from rl_research.errors import CheckpointDamaged, ConfigError, StorageError
from rl_research.storage import hiccups
from rl_research.storage.multipart import PART
from rl_research.storage.store import Store, below

PREFIX = "läufe mit leerzeichen/试验"
BIG = 20 << 20  # bytes: three parts


@pytest.fixture(params=["s3", "gcs", "sftp", "az"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the servers."""
    found: Server = request.getfixturevalue(request.param)
    found.bucket("runs")
    return found


def _committed(run_dir: Path, step: int, size: int = 1000, content: bytes = b"a", **facts: Any) -> Checkpoint:
    """A checkpoint of a few files and a shared segment in *run_dir*."""
    files = {"model.zip": content * size, "counters.json": b"{}", "empty": b""}
    segments = [("rows-000000000", b"segment" * 100)]
    return checkpoints.commit(run_dir, step, files, facts, segments=segments)


def _remote(server: Server, run_id: str, prefix: str = PREFIX, timeout: float = 60.0) -> Store:
    url = server.url(f"runs/{prefix}")
    return checkpoints.remote_store(url, server.options, run_id, timeout)


def _files_of_run(server: Server, run_id: str, prefix: str = PREFIX) -> dict[str, bytes]:
    """What the server's own folder holds of a run's checkpoints."""
    start = f"{prefix}/{run_id}/checkpoints/"
    found = server.files("runs").items()
    return {path.removeprefix(start): data for path, data in found if path.startswith(start)}


def _assert_whole(files: dict[str, bytes], step: int) -> None:
    """Judge a checkpoint by its manifest and hashlib alone."""
    folder = f"step-{step:09d}"
    manifest = json.loads(files[f"{folder}/manifest.json"])
    for place, group in ((folder, "files"), ("replay", "shared")):
        for name, facts in manifest[group].items():
            data = files[f"{place}/{name}"]
            assert len(data) == facts["size"]
            assert hashlib.sha256(data).hexdigest() == facts["sha256"]


# ---------------------------------------------------------------- the store itself


@pytest.mark.slow
def test_a_store_keeps_what_it_is_given(server: Server, tmp_path: Path) -> None:
    """Write, put, read, get, size, sizes, folders and remove agree on every server and with its files."""
    store = Store(server.url(f"runs/{PREFIX}/ä b"), server.options)
    (tmp_path / "big").write_bytes(os.urandom(BIG))
    (tmp_path / "empty").write_bytes(b"")
    assert store.folders() == []
    assert store.sizes() == {}
    store.write("one/written é", b"written")
    store.put_files({"two/empty": tmp_path / "empty"})  # rclone's server fails two first files of a folder
    store.put_files({"two/big": tmp_path / "big", "two/empty": tmp_path / "empty"})
    assert store.read("one/written é") == b"written"
    assert [store.size(f"two/{name}") for name in ("big", "empty", "none")] == [BIG, 0, None]
    assert store.sizes("two") == {"big": BIG, "empty": 0}
    assert store.folders() == ["one", "two"]
    sha256 = hashlib.sha256((tmp_path / "big").read_bytes()).hexdigest()
    assert store.get("two/big", tmp_path / "new" / "got") == sha256
    assert store.sha256("two/big", BIG) == sha256
    assert max(map(len, store.pieces("two/big", BIG))) < BIG / 2
    there = server.files("runs")
    assert there[f"{PREFIX}/ä b/two/big"] == (tmp_path / "big").read_bytes()
    assert not [path for path in there if ".tmp" in path]
    store.remove("two")
    store.remove("two")
    assert store.folders() == ["one"]
    with pytest.raises(FileNotFoundError):
        store.read("two/big")
    assert not [path for path in server.files("runs") if path.startswith(f"{PREFIX}/ä b/two")]


@pytest.mark.slow
def test_files_of_all_sizes_arrive_side_by_side(server: Server, tmp_path: Path) -> None:
    """However many files of whatever sizes go at once, each arrives byte for byte."""
    sizes = [0, 1, PART - 1, PART, PART + 1, 3 * PART - 5, *range(100, 2000, 47)]
    files = {f"many/{number:02d}": tmp_path / f"{number}" for number in range(2 * len(sizes))}
    for path, size in zip(files.values(), 2 * sizes, strict=True):
        # no carriage return at the end, which the emulator of GCS loses
        path.write_bytes(os.urandom(max(0, size - 1)) + b"."[:size])
    store = Store(server.url(f"runs/{PREFIX}"), server.options)
    store.write("many/first", b"")  # rclone's server fails two first files of a folder
    store.put_files(files)
    there = server.files("runs")
    assert {name: there[f"{PREFIX}/{name}"] for name in files} == {
        name: path.read_bytes() for name, path in files.items()
    }


@pytest.mark.parametrize(
    ("url", "name", "expected"),
    [
        ("s3://bucket/runs/", "a/b", "s3://bucket/runs/a/b"),
        ("simplecache::s3://bucket/runs", "a", "simplecache::s3://bucket/runs/a"),
        ("dir://sub::file:///tmp/x", "a", "dir://sub/a::file:///tmp/x"),
        ("/plain/path", "a", "/plain/path/a"),
        ("s3://bucket", "", "s3://bucket"),
    ],
)
def test_a_name_below_a_url(url: str, name: str, expected: str) -> None:
    """A chain of file systems is extended where its path is."""
    assert below(url, name) == expected


@pytest.mark.parametrize(
    ("chain", "prefix"),
    [
        ("simplecache::s3://runs/chain/{}", "simple"),
        ("filecache::s3://runs/chain/{}", "file"),
        ("blockcache::s3://runs/chain/{}", "block"),
        ("dir://{}::s3://runs/chain", "dir"),
        ("simplecache::dir://{}::s3://runs/chain", "both"),
    ],
)
def test_a_chain_of_file_systems_works(s3: Server, tmp_path: Path, chain: str, prefix: str) -> None:
    """Through caches and folders checkpoints are stored, changed and found as they are now."""
    s3.bucket("runs")
    options, url = {"s3": s3.options}, chain.format(prefix)
    store = checkpoints.remote_store(url, options, "mine")
    made = _committed(tmp_path / "mine", 10, BIG)
    checkpoints.upload(made, store)
    _assert_whole(_files_of_run(s3, "mine", f"chain/{prefix}"), 10)
    found = checkpoints.find(below(url, "mine"), options)
    found.verify()
    assert found.address == below(url, "mine/checkpoints/step-000000010")
    for reference in (found.address, f"{found.address}/", below(url, "mine@step-10")):
        assert checkpoints.find(reference, options).address == found.address
    assert checkpoints.is_in(made, store)
    scored = checkpoints.find(str(checkpoints.add_facts(made, final_scores={"mean": 1}).address))
    assert not checkpoints.is_in(scored, store)
    checkpoints.upload(scored, store)
    assert checkpoints.is_in(scored, store), "an old manifest came from a cache"


def test_checkpoints_in_an_archive_can_be_read(s3: Server, tmp_path: Path) -> None:
    """A zip of a run in a bucket is found, verified and downloaded from; nothing can be written to it."""
    bucket = s3.bucket("runs")
    _committed(tmp_path / "here" / "mine", 10, BIG)
    made = shutil.make_archive(str(tmp_path / "runs"), "zip", tmp_path / "here")
    shutil.move(made, bucket / "runs.zip")
    time.sleep(0.3)  # the server looks at its folder every 0.1 s
    options = {"s3": s3.options}
    found = checkpoints.find("zip://mine::s3://runs/runs.zip", options)
    found.verify()
    assert checkpoints.find(found.address, options).address == found.address
    checkpoints.download(found, tmp_path / "there" / "mine").verify()
    _one_line(lambda: found.store.write("x", b"y"), "zip://mine/checkpoints", "can only be read")
    _one_line(lambda: found.store.remove("x"), "can only be read", "Give the URL of a folder")


# ---------------------------------------------------------------- checkpoints in it


@pytest.mark.slow
def test_a_checkpoint_goes_there_and_back(server: Server, tmp_path: Path) -> None:
    """Uploaded, listed, verified and downloaded elsewhere, it is the same to the last byte."""
    store = _remote(server, "back")
    uploaded = checkpoints.upload(_committed(tmp_path / "here" / "back", 10, BIG), store)
    _assert_whole(_files_of_run(server, "back"), 10)
    found = checkpoints.find(server.url(f"runs/{PREFIX}/back"), server.options)
    found.verify()
    assert found.address == uploaded.address == server.url(f"runs/{PREFIX}/back/checkpoints/step-000000010")
    again = checkpoints.download(found, tmp_path / "there" / "back")
    again.verify()
    assert again.read("model.zip") == b"a" * BIG


@pytest.mark.slow
def test_two_runs_in_a_bucket_do_not_touch_each_other(server: Server, tmp_path: Path) -> None:
    """Retention of one run leaves the other's files, though one's name begins with the other's."""
    for run_id in ("twin", "twin-2"):
        for step in (10, 20, 30):
            made = _committed(tmp_path / run_id, step)
            checkpoints.upload(made, _remote(server, run_id))
    before = _files_of_run(server, "twin-2")
    checkpoints.prune_store(_remote(server, "twin"), checkpoints.Retention(1, 0))
    assert _files_of_run(server, "twin-2") == before
    left = {path.split("/")[0] for path in _files_of_run(server, "twin")}
    assert left == {"step-000000030", "replay"}
    _assert_whole(_files_of_run(server, "twin"), 30)


def test_a_repeated_upload_sends_only_what_is_missing(s3: Server, tmp_path: Path) -> None:
    """A second upload sends the manifest, one that was cut off the rest, other content all."""
    s3.bucket("runs")
    with faults_before(s3) as faults:
        store = _remote(s3.at(faults.port), "again", "again")
        made = _committed(tmp_path / "again", 10, BIG)
        checkpoints.upload(made, store)
        faults.clear()
        checkpoints.upload(made, store)
        assert faults.sent < 20_000
        second = _committed(tmp_path / "again", 20, BIG)
        faults.fail("reset", path="partNumber=3")
        with pytest.raises(Exception, match="Could not connect"):
            checkpoints.upload(second, store)
        faults.clear()
        checkpoints.upload(second, store)
        assert BIG < faults.sent < 1.1 * BIG
        _assert_whole(_files_of_run(s3, "again", "again"), 20)
        faults.clear()
        other = _committed(tmp_path / "other", 20, BIG, b"b")
        checkpoints.upload(other, store)
        assert faults.sent > BIG, "files of the same size and other content were not sent"
        assert _files_of_run(s3, "again", "again")["step-000000020/model.zip"] == b"b" * BIG


def test_a_broken_upload_leaves_no_parts_behind(s3: Server, tmp_path: Path) -> None:
    """A multipart upload that fails is ended on the server, where its parts would cost money."""
    s3.bucket("runs")
    with faults_before(s3) as faults:
        store = _remote(s3.at(faults.port), "parts", "parts")
        faults.fail("status", status=503, code="SlowDown", path="partNumber=2")
        with pytest.raises(OSError, match="SlowDown"):
            checkpoints.upload(_committed(tmp_path / "parts", 10, BIG), store)
        assert any(path.startswith("DELETE") and "uploadId" in path for path in faults.paths)


def test_an_upload_that_cannot_be_begun_is_asked_for_once_for_all_its_parts(s3: Server, tmp_path: Path) -> None:
    """All its parts wait for one answer, which is asked for again as often as that of any request."""
    s3.bucket("runs")
    (tmp_path / "big").write_bytes(os.urandom(BIG))
    with faults_before(s3) as faults:
        there = s3.at(faults.port)
        store = Store(there.url("runs/begun"), there.options)
        faults.fail("status", status=503, code="SlowDown", path="?uploads")
        with pytest.raises(OSError, match="SlowDown"):
            store.put_files({"big": tmp_path / "big"})
        assert len([path for path in faults.paths if "?uploads" in path]) == hiccups.TRIES
        assert not [path for path in faults.paths if "partNumber" in path]


def test_a_broken_connection_is_told_once(s3: Server, caplog: pytest.LogCaptureFixture) -> None:
    """What a client's own task leaves of it is no traceback in the log; any other error still is."""
    loop = Store(s3.url("runs/once"), s3.options).fs.loop

    async def leave(error: Exception) -> None:
        async def fail() -> None:
            raise error

        task = asyncio.ensure_future(fail())
        await asyncio.wait([task])

    for error in (ConnectionResetError("closing transport"), ValueError("a bug")):
        asyncio.run_coroutine_threadsafe(leave(error), loop).result(10)
        gc.collect()
    told = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert list(map(str, told)) == ["a bug"]


def test_a_damaged_checkpoint_in_the_store_is_reported(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the newest lacks a file, the one before is found; a changed byte is noticed on download."""
    store = _remote(server, "damaged")
    for step in (10, 20):
        checkpoints.upload(_committed(tmp_path / "damaged", step), store)
    store.remove("step-000000020/model.zip")
    url = server.url(f"runs/{PREFIX}/damaged")
    assert checkpoints.find(url, server.options).global_step == 10
    assert "step-000000020/model.zip: no bytes" in caplog.text
    store.write("step-000000010/model.zip", b"b" * 1000)
    found = checkpoints.find(url, server.options)
    with pytest.raises(CheckpointDamaged, match="SHA-256"):
        found.verify()
    with pytest.raises(CheckpointDamaged, match="SHA-256"):
        checkpoints.download(found, tmp_path / "new")
    assert not list((tmp_path / "new").rglob("*.zip*"))
    store.remove("step-000000010/model.zip")
    with pytest.raises(CheckpointDamaged, match=r"step-000000020/model\.zip: no bytes"):
        checkpoints.find(url, server.options).read("model.zip")


UPLOADER = """
import sys
from pathlib import Path
from rl_research import checkpoints
run_dir, url, options, run_id = Path(sys.argv[1]), sys.argv[2], eval(sys.argv[3]), sys.argv[4]
store = checkpoints.remote_store(url, options, run_id)
for checkpoint in checkpoints.local_checkpoints(run_dir):
    checkpoints.upload(checkpoint, store)
print("done")
"""


@pytest.mark.slow
def test_killed_within_an_upload_no_checkpoint_is_half_there(server: Server, tmp_path: Path) -> None:
    """SIGKILL at any moment of an upload: what has a manifest is whole, and the next try ends it."""
    run_id = "killed"
    for step in (10, 20):
        _committed(tmp_path / run_id, step, BIG, str(step).encode())
    with faults_before(server) as faults:
        through = server.at(faults.port)
        words = [str(tmp_path / run_id), through.url(f"runs/{PREFIX}"), repr(through.options), run_id]
        faults.fail("slow", rate=40e6)
        for target in (BIG // 4, BIG + BIG // 2, 3 * BIG):
            process = subprocess.Popen(
                [sys.executable, "-c", UPLOADER, *words], env=environment(), stdout=subprocess.DEVNULL
            )
            deadline = time.monotonic() + 60
            faults.sent = 0
            while faults.sent < target and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            files = _files_of_run(server, run_id)
            for path in files:
                if path.endswith("manifest.json"):
                    _assert_whole(files, int(path.split("/")[0].removeprefix("step-")))
        faults.clear()
        done = subprocess.run(
            [sys.executable, "-c", UPLOADER, *words],
            env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.stdout == "done\n", done.stderr
    files = _files_of_run(server, run_id)
    for step in (10, 20):
        _assert_whole(files, step)


# ---------------------------------------------------------------- refusals of real servers


def _one_line(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(StorageError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_a_bucket_that_vanishes_or_refuses_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    """A bucket that is removed under a run, or that refuses, is one line that names it, and nothing is written."""
    with serving("s3", tmp_path / "s3" / "files") as own:
        for name, value in own.variables.items():
            monkeypatch.setenv(name, value)
        bucket = own.bucket("going")
        store = Store(own.url("going/runs"), own.options)
        store.write("a", b"x")
        bucket.rename(bucket.with_name("gone"))
        time.sleep(0.3)  # the server looks at its folder every 0.1 s
        _one_line(lambda: store.write("b", b"x"), "s3://going/runs", "write b", "no such bucket")
        assert not bucket.exists()
    with serving("sftp", tmp_path / "sftp" / "files") as own:
        own.bucket("shut")
        store = Store(own.url("shut/runs"), own.options)
        store.write("a", b"x")
        (own.folder / "shut" / "file").write_bytes(b"")
        time.sleep(0.3)
        _one_line(lambda: store.write("../file/b", b"x"), "sftp://", "write ../file/b")
        assert (own.folder / "shut" / "file").read_bytes() == b""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [("s3fs", "s3://bucket/x", "s3"), ("gcsfs", "gs://bucket/x", "gcs"),
     ("paramiko", "sftp://host/x", "sftp"), ("s3fs", "simplecache::s3://bucket/x", "s3"),
     ("adlfs", "az://container/x", "azure")],
)  # fmt: skip
def test_a_missing_extra_is_one_line(tmp_path: Path, module: str, url: str, extra: str) -> None:
    """Without its client, a URL is refused with what to install, before anything is written."""
    blocked = (
        f"import sys; sys.modules['{module}'] = None; from rl_research.cli.command import main; "
        f"sys.exit(main(['train', \"storage.url='{url}'\", 'runs_dir={tmp_path / 'runs'}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"pip install 'rl-research[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- secrets

SECRET = "hunter2-and-more"


def test_secrets_among_overrides_become_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the flow gets names variables and means the same; other words stay as they were."""
    for name in list(os.environ):
        if name.startswith("RL_RESEARCH_STORAGE"):
            monkeypatch.delenv(name)
    given = [
        "algorithm=sac", "env=pendulum",
        f"storage.url='sftp://me:{SECRET}@host/a b'",
        f"storage.options.secret={SECRET}",
        f"+storage.options.client_kwargs={{aws_session_token: {SECRET}, region_name: eu, n: [1, true]}}",
        f"storage.options.connection_string='Key={SECRET};x'",
        "storage.options.token=anon",
        "storage.options.key_filename=~/.ssh/id",
        "storage.options.password=${oc.env:HOME}",
    ]  # fmt: skip
    hidden = hide_secrets(given)
    assert SECRET not in " ".join(hidden)
    assert load_config(hidden).storage == load_config(given).storage
    assert hidden[:2] + hidden[6:] == given[:2] + given[6:]
    refuse_secrets(hidden, "sftp://me@host/a")
    for line in given[2:6]:
        with pytest.raises(ConfigError, match=r"\$\{oc\.env:NAME\}") as caught:
            refuse_secrets([line])
        assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="password"):
        refuse_secrets([], f"sftp://me:{SECRET}@host/a")
    reference, words = hide_secrets_of(f"sftp://me:{SECRET}@host/a", [])
    assert reference == "sftp://me@host/a"
    assert load_config(words).storage.options["password"] == SECRET


def test_a_password_in_the_url_is_never_shown(sftp: Server, tmp_path: Path) -> None:
    """A store opened by a URL with a password works and shows itself without it."""
    sftp.bucket("runs")
    password = sftp.variables["SFTP_PASSWORD"]
    options = {"look_for_keys": False, "allow_agent": False}
    url = sftp.url("runs/open").replace("sftp://", f"sftp://tester:{password}@")
    store = checkpoints.remote_store(url, options, "mine")
    uploaded = checkpoints.upload(_committed(tmp_path / "mine", 10), store)
    shown = sftp.url("runs/open").replace("sftp://", "sftp://tester@")
    assert store.url == f"{shown}/mine/checkpoints"
    assert uploaded.address == f"{shown}/mine/checkpoints/step-000000010"
    assert checkpoints.find(url + "/mine", options).address == uploaded.address
    again = checkpoints.find(uploaded.address, {**options, "password": password})
    again.verify()
    with pytest.raises(Exception, match="nothing") as caught:
        checkpoints.find(url + "/nothing", options)
    assert password not in str(caught.value)


@pytest.mark.slow  # a whole command with a Prefect API of its own
def test_a_secret_is_nowhere_to_be_found_afterwards(sftp: Server, tmp_path: Path) -> None:
    """A run and an evaluation by a URL with a password: no file, log, database or artifact holds it."""
    sftp.bucket("runs")
    password = sftp.variables["SFTP_PASSWORD"]
    url = sftp.url("runs/secret").replace("sftp://", f"sftp://tester:{password}@")
    home = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_LOGGING_LEVEL": "DEBUG"}
    options = ["storage.options.look_for_keys=false", "storage.options.allow_agent=false",
               f"storage.options.passphrase={SECRET}"]  # fmt: skip
    commands = [
        ["train", *tiny(tmp_path / "runs", "mine", f"storage.url='{url}'", *options)],
        ["evaluate", f"{url}/mine", "--episodes", "2", *options],
        ["verify", f"{url}/mine", *options],
        ["train", *tiny(tmp_path / "runs", "mine", f"storage.url='{url}'", *options), "--cfg"],
    ]
    said = ""
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-m", "rl_research", *words],
            capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path,
            env=environment(**home),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    assert (tmp_path / "prefect" / "prefect.db").stat().st_size > 0
    stored = _files_of_run(sftp, "mine", "secret")
    _assert_whole(stored, 96)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (password, SECRET):
        assert secret not in said
        assert not [path for path in kept if secret.encode() in path.read_bytes()]
        assert not [path for path, data in stored.items() if secret.encode() in data]


@pytest.mark.slow  # whole commands with a Prefect API of their own
def test_azure_serves_a_whole_run_and_keeps_its_secret(az: Server, tmp_path: Path) -> None:
    """Trained, continued elsewhere, evaluated and pruned by URL; the account's key is on no disk."""
    az.bucket("runs")
    string: str = az.options["connection_string"]
    key = string.partition("AccountKey=")[2].partition(";")[0]
    url, home = az.url("runs/läufe mit leerzeichen"), {"PREFECT_HOME": str(tmp_path / "prefect")}
    given, kept = ([f"storage.options.connection_string='{string}'"], {"AZURE_STORAGE_CONNECTION_STRING": string})
    longer = "experiment.total_timesteps=128"
    commands: list[tuple[list[str], dict[str, str]]] = [
        (["train", "storage=azure", *tiny(tmp_path / "a", "mine", f"storage.url='{url}'", *given)], {}),
        (["train", *tiny(tmp_path / "b", "mine", f"storage.url='{url}'", longer)], kept),
        (["evaluate", f"{url}/mine", "--episodes", "2"], kept),
        (["verify", f"{url}/mine"], kept),
        (["prune", url, "--grace", "0s"], kept),
    ]
    said = ""
    for words, variables in commands:
        done = subprocess.run(
            [sys.executable, "-m", "rl_research", *words],
            capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path,
            env=environment(**home, **variables),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    stored = _files_of_run(az, "mine", "läufe mit leerzeichen")
    _assert_whole(stored, 128)
    assert json.loads((tmp_path / "b/mine/run.json").read_text())["not_uploaded"] == []
    kept_files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (key, string):
        assert secret not in said
        assert not [path for path in kept_files if secret.encode() in path.read_bytes()]
        assert not [path for path, data in stored.items() if secret.encode() in data]


@pytest.mark.slow  # several processes that each import a client
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """A round of two megabytes and two thousand steps ends with the figures of both."""
    program = Path(__file__).parents[1] / "benchmarks" / "storage.py"
    fake = tmp_path / "aws"
    fake.write_text("#!/bin/sh\nsleep 0.1\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [
            sys.executable, program, "--aws", fake,
            "--rounds", "1", "--megabytes", "2", "--steps", "2000",
        ],
        capture_output=True, text=True, timeout=280, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ours start-up" in done.stdout
    assert "ours / aws, without" in done.stdout
    assert "training with uploads / without" in done.stdout
