"""Multipart uploads that killed processes leave in S3 are found, listed and ended; nobody else's are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Faults, faults_before
from helpers import environment
from servers import Server

from rl_research import checkpoints
from rl_research.cli import command
from rl_research.pruning import Rules, prune_place
from rl_research.storage.store import Store

DAY = 86400.0
PREFIX = "läufe mit leerzeichen/试验"
BUCKET = "unfinished"

UPLOADER = """
import sys
from pathlib import Path
from rl_research import checkpoints
store = checkpoints.remote_store(sys.argv[2], eval(sys.argv[3]), "ein lauf")
for checkpoint in checkpoints.local_checkpoints(Path(sys.argv[1])):
    checkpoints.upload(checkpoint, store)
"""


@pytest.fixture
def faults(s3: Server) -> Iterator[Faults]:
    """A proxy before the S3 server, whose bucket has no unfinished uploads."""
    s3.bucket(BUCKET)
    for upload in (everything := Store(s3.url(BUCKET), s3.options)).unfinished_uploads():
        everything.abort(upload)
    with faults_before(s3) as found:
        yield found


def _begin(s3: Server, key: str) -> None:
    """Begin a multipart upload, as a process does that is killed then."""
    client = Store(s3.url(BUCKET), s3.options).fs
    where = {"Bucket": BUCKET, "Key": key}
    upload = client.call_s3("create_multipart_upload", **where)["UploadId"]
    client.call_s3("upload_part", **where, UploadId=upload, PartNumber=1, Body=b"a part")


def _left(s3: Server) -> list[str]:
    """The keys of all unfinished uploads in the bucket."""
    return [upload.name for upload in Store(s3.url(BUCKET), s3.options).unfinished_uploads()]


def _later(s3: Server, **rules: Any) -> Rules:
    return Rules(now=time.time() + 2 * DAY, options=s3.options, **rules)


def _killed_within_an_upload(tmp_path: Path, faults: Faults) -> None:
    """Leave the upload of a checkpoint of 20 MB to a process that gets SIGKILL in the middle of it."""
    files = {"model.zip": bytes(20 << 20), "counters.json": b"{}"}
    checkpoints.commit(tmp_path / "ein lauf", 10, files, {})
    through = faults.server.at(faults.port)
    words = [str(tmp_path / "ein lauf"), through.url(f"{BUCKET}/{PREFIX}"), repr(through.options)]
    faults.fail("slow", rate=4e6)
    process = subprocess.Popen([sys.executable, "-c", UPLOADER, *words], env=environment())
    everything = Store(faults.server.url(BUCKET), faults.server.options)
    deadline = time.monotonic() + 60
    while faults.sent < 6 << 20 or not everything.unfinished_uploads():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    faults.clear()


@pytest.mark.slow
def test_what_a_killed_process_left_is_swept_with_its_orphans(tmp_path: Path, faults: Faults, s3: Server) -> None:
    """A real SIGKILL: young it stays, a dry run says what would go, then upload and orphans are gone."""
    _killed_within_an_upload(tmp_path, faults)
    (left,) = _left(s3)
    assert left == f"{PREFIX}/ein lauf/checkpoints/step-000000010/model.zip"
    place = s3.url(f"{BUCKET}/{PREFIX}")
    assert prune_place(place, Rules(options=s3.options)).removed == []
    dry = prune_place(place, _later(s3, dry_run=True))
    assert _left(s3) == [left]
    pruned = prune_place(place, _later(s3))
    assert _left(s3) == []
    assert [r.described() for r in dry.removed] == [r.described() for r in pruned.removed]
    (upload,) = (r for r in pruned.removed if "never finished" in r.reason)
    assert upload.path.endswith(left)
    assert (upload.size, "of unknown size" in upload.reason) == (0, True)
    assert (dry.bytes_left, pruned.bytes_left) == (0, 0)
    assert not [path for path in s3.files(BUCKET) if path.startswith(PREFIX)]
    assert prune_place(place, _later(s3)).removed == []


@pytest.mark.usefixtures("faults")
def test_only_a_runs_own_and_old_ones_go(s3: Server) -> None:
    """Another prefix's, another program's and young ones stay, page after page; so do a live run's."""
    ours = [f"p/run-{n}/checkpoints/step-000000010/model.zip" for n in range(5)]
    ours += ["p/run-1/checkpoints/replay/rows-000000000001-000000000009-abc.npz"]
    others = [
        "p2/run-1/checkpoints/step-000000010/model.zip", "p/notes/big.bin", "other.bin",
        "p/run-1/checkpoints/strange/model.zip", "p/run-1/videos/step-000000010/film.mp4",
        "p/open/checkpoints/step-000000010/model.zip",
    ]  # fmt: skip
    for key in [*ours, *others]:
        _begin(s3, key)
    place = s3.url(f"{BUCKET}/p")
    lease = {"host": "elsewhere", "pid": 1, "renewed": time.time()}
    Store(place, s3.options).write("open/checkpoints/lease.json", json.dumps(lease).encode())
    assert prune_place(place, Rules(options=s3.options)).removed == []
    in_an_hour = Rules(now=time.time() + 3000, grace=1000, options=s3.options)
    pruned = prune_place(place, in_an_hour)
    assert sorted(_left(s3)) == sorted(others)
    assert len([r for r in pruned.removed if "never finished" in r.reason]) == len(ours)
    assert any("has this run open" in reason for _, reason in pruned.spared)
    for key in ("p/one/checkpoints/step-000000010/a.bin", "p/one-2/checkpoints/step-000000010/a.bin"):
        _begin(s3, key)
    (one,) = prune_place(f"{place}/one", in_an_hour).removed
    assert one.path.endswith("p/one/checkpoints/step-000000010/a.bin")
    assert [key for key in _left(s3) if "/one" in key] == ["p/one-2/checkpoints/step-000000010/a.bin"]


@pytest.mark.usefixtures("faults")
def test_many_are_listed_page_by_page(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lists two uploads at a time is asked until it has listed all."""
    keys = [f"many/run/checkpoints/step-00000001{n}/a b é.bin" for n in range(5)]
    for key in [*keys, keys[1]]:  # two to the same object
        _begin(s3, key)
    store = Store(s3.url(f"{BUCKET}/many"), s3.options)
    honest, pages = store.fs._call_s3, []

    async def a_few(method: str, **arguments: Any) -> Any:
        pages.append(method)
        return await honest(method, **arguments, MaxUploads=2)

    monkeypatch.setattr(store.fs, "_call_s3", a_few)
    found = store.unfinished_uploads()
    assert [f"many/{upload.name}" for upload in found] == sorted([*keys, keys[1]])
    assert pages == ["list_multipart_uploads"] * 3


@pytest.mark.parametrize(
    ("call", "methods", "path", "right"),
    [
        ("list", ("GET",), "uploads", "s3:ListBucketMultipartUploads"),
        ("abort", ("DELETE",), "uploadId", "s3:AbortMultipartUpload"),
    ],
)
def test_a_missing_right_is_a_line_and_no_failure(
    faults: Faults, s3: Server, capfd: pytest.CaptureFixture[str],
    call: str, methods: tuple[str, ...], path: str, right: str,
) -> None:  # fmt: skip
    """Keys that may not list or abort uploads prune everything else, and say which right they lack."""
    run = "denied/run/checkpoints"
    _begin(s3, f"{run}/step-000000020/model.zip")
    store = Store(s3.url(f"{BUCKET}/{run}"), s3.options)
    store.write("step-000000010/model.zip", b"orphan")
    faults.fail("status", status=403, code="AccessDenied", methods=methods, path=path)
    through = s3.at(faults.port)
    words = [f"storage.options.{key}='{value}'" for key, value in through.options.items()]
    code = command.main(["prune", s3.url(f"{BUCKET}/denied"), "--grace", "0s", *words])
    out, err = capfd.readouterr()
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if "left alone" in line)
    assert f"lack the right {right}" in line
    assert store.size("step-000000010/model.zip") is None
    assert len(_left(s3)) == 1
    if call == "list":
        assert "unfinished uploads there are not looked for" in line


def test_elsewhere_there_are_none(tmp_path: Path, gcs: Server) -> None:
    """A folder, memory and GCS tell of no unfinished uploads."""
    gcs.bucket(BUCKET)
    for store in (Store(tmp_path), Store("memory://x"), Store(gcs.url(BUCKET), gcs.options)):
        assert store.unfinished_uploads() == []
