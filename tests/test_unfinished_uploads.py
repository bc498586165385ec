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
PART = 5 << 20  # bytes; S3's smallest
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


def _begin(s3: Server, key: str, parts: int = 1) -> None:
    """Begin a multipart upload, as a process does that is killed then."""
    client = Store(s3.url(BUCKET), s3.options).fs
    where = {"Bucket": BUCKET, "Key": key}
    upload = client.call_s3("create_multipart_upload", **where)["UploadId"]
    for number in range(1, parts + 1):
        body = bytes(PART)
        client.call_s3("upload_part", **where, UploadId=upload, PartNumber=number, Body=body)


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
    while not any(upload.size for upload in everything.unfinished_uploads()):  # no part is whole yet
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
    assert upload.size >= 4 << 20, "the smallest part"
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
        _begin(s3, key, parts=0)
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
    assert one.size == PART
    assert [key for key in _left(s3) if "/one" in key] == ["p/one-2/checkpoints/step-000000010/a.bin"]


@pytest.mark.usefixtures("faults")
def test_many_are_listed_page_by_page(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that tells of two uploads and of one part at a time is asked until it has told all."""
    keys = [f"many/run/checkpoints/step-00000001{n}/a b é.bin" for n in range(5)]
    for key in keys:
        _begin(s3, key, parts=2 if key == keys[0] else 0)
    _begin(s3, keys[1])  # a second one to the same object
    store = Store(s3.url(f"{BUCKET}/many"), s3.options)
    honest, pages = store.fs._call_s3, {"list_multipart_uploads": 0, "list_parts": 0}

    async def a_few(method: str, **arguments: Any) -> Any:
        limits = {"list_multipart_uploads": "MaxUploads", "list_parts": "MaxParts"}
        pages[method] += 1
        return await honest(method, **arguments, **{limits[method]: 2 if "Up" in limits[method] else 1})

    monkeypatch.setattr(store.fs, "_call_s3", a_few)
    found = store.unfinished_uploads()
    assert [f"many/{upload.name}" for upload in found] == sorted([*keys, keys[1]])
    assert [upload.size for upload in found] == [2 * PART, *sorted(u.size or 0 for u in found[1:3]), 0, 0, 0]
    assert pages["list_multipart_uploads"] == 3
    assert pages["list_parts"] > len(found)


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


def test_where_parts_may_not_be_listed_the_size_is_unknown(faults: Faults, s3: Server) -> None:
    """Without ``s3:ListMultipartUploadParts`` the age is the upload's own, and it goes."""
    _begin(s3, "parts/run/checkpoints/step-000000020/model.zip")
    faults.fail("status", status=403, code="AccessDenied", methods=("GET",), path="uploadId")
    through = s3.at(faults.port)
    pruned = prune_place(s3.url(f"{BUCKET}/parts"), _later(through))
    (removal,) = pruned.removed
    assert (removal.size, "of unknown size" in removal.reason) == (0, True)
    assert _left(s3) == []


def test_elsewhere_there_are_none(tmp_path: Path, gcs: Server) -> None:
    """A folder, memory and GCS tell of no unfinished uploads."""
    gcs.bucket(BUCKET)
    for store in (Store(tmp_path), Store("memory://x"), Store(gcs.url(BUCKET), gcs.options)):
        assert store.unfinished_uploads() == []
