"""A hiccup costs a request, not a checkpoint: see `rl_research.storage.hiccups`."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from faults import Faults, faults_before
from helpers import environment, tiny
from servers import Server, serving

from rl_research import checkpoints
from rl_research.errors import StorageError
from rl_research.storage import is_transient
from rl_research.storage.hiccups import TRIES, repeats_logged
from rl_research.storage.multipart import PART
from rl_research.storage.store import Store

_CHECKPOINTS = 31
_BIG = 2 * PART + 12345  # bytes: three parts


@pytest.mark.parametrize("kind", ["s3", "gcs", "sftp", "az"])
def test_each_operation_is_tried_again_by_itself(
    request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Two failures before each operation are passed over, counted, and told in one line."""
    server: Server = request.getfixturevalue(kind)
    server.bucket("hiccups")
    big = tmp_path / "big"
    big.write_bytes(os.urandom(_BIG))
    with faults_before(server) as faults, caplog.at_level(logging.INFO, "rl_research"):
        there = server.at(faults.port)
        operations: dict[str, Callable[[Store], object]] = {
            "upload": lambda store: store.put_files({"a/big": big}),
            "write": lambda store: store.write("a/small", b"small"),
            "read": lambda store: store.read("a/small") == b"small" or pytest.fail("other bytes"),
            "list": lambda store: store.sizes("a") == {"big": _BIG, "small": 5} or pytest.fail("other files"),
            "size": lambda store: store.size("a/big") == _BIG or pytest.fail("another size"),
            "download": lambda store: store.get("a/big", tmp_path / "again"),
            "remove": lambda store: store.remove("a"),
        }
        store = Store(there.url("hiccups/x"), there.options)
        for name, operation in operations.items():
            faults.fail("reset" if kind == "sftp" else "status", status=503, times=2)
            if kind == "sftp":
                faults.refuse()
                faults.accept()
            caplog.clear()
            with repeats_logged(name):
                operation(store)
            told = [record.message for record in caplog.records if "made again" in record.message]
            assert len(told) == 1, name
            assert re.match(rf"{name}: (a request|\d requests) to the store made again; the last after: .", told[0])
        assert (tmp_path / "again").read_bytes() == big.read_bytes()
        assert store.content("a") == ({}, [])


def test_parts_that_have_arrived_are_not_sent_again(s3: Server, tmp_path: Path) -> None:
    """Of three parts one fails twice: five requests carry parts, and the object is whole."""
    bucket = s3.bucket("parts-again")
    (tmp_path / "big").write_bytes(os.urandom(_BIG))
    with faults_before(s3) as faults:
        there = s3.at(faults.port)
        faults.fail("reset_request", after=100_000, times=2, path="partNumber=2")
        Store(there.url("parts-again"), there.options).put_files({"big": tmp_path / "big"})
        assert len([path for path in faults.paths if "partNumber" in path]) == 5
    assert (bucket / "big").read_bytes() == (tmp_path / "big").read_bytes()


@pytest.mark.parametrize("kind", ["s3", "gcs", "az"])
def test_what_has_been_downloaded_is_not_asked_for_again(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """A download that is reset in its middle goes on from there."""
    server: Server = request.getfixturevalue(kind)
    server.bucket("resumed")
    (tmp_path / "sent").write_bytes(content := os.urandom(_BIG))
    Store(server.url("resumed"), server.options).put_files({"big": tmp_path / "sent"})
    with faults_before(server) as faults:
        there = server.at(faults.port)
        store = Store(there.url("resumed"), there.options)
        faults.fail("reset_response", after=5 << 20, times=1, methods=("GET",), path="big")
        store.get("big", tmp_path / "big")
        assert faults.received < _BIG + PART
    assert (tmp_path / "big").read_bytes() == content


def test_an_upload_whose_last_answer_is_lost_is_no_missing_bucket(s3: Server, tmp_path: Path) -> None:
    """The object is there; whoever sends it is told of a lost connection, and looks before it sends anything."""
    bucket = s3.bucket("lost-answer")
    (tmp_path / "big").write_bytes(os.urandom(_BIG))
    with faults_before(s3) as faults:
        there = s3.at(faults.port)
        store = Store(there.url("lost-answer"), there.options)
        faults.fail("reset_response", times=1, methods=("POST",), path="uploadId")
        with suppress(ConnectionResetError):
            store.put_files({"big": tmp_path / "big"})
    assert (bucket / "big").read_bytes() == (tmp_path / "big").read_bytes()


def test_a_store_that_is_away_is_given_up_within_seconds(s3: Server) -> None:
    """So many requests, then the error as the client raised it: the task waits longer."""
    with faults_before(s3) as faults:
        there = s3.at(faults.port)
        store = Store(there.url("away"), there.options)
        faults.fail("status", status=503)
        began = time.monotonic()
        with pytest.raises(OSError, match=r"Service Unavailable|503|GetObject") as raised:
            store.read("any")
        assert time.monotonic() - began < 10
        assert is_transient(raised.value)
        assert sum(faults.requests.values()) == TRIES


def test_a_silence_is_not_waited_for_again(s3: Server) -> None:
    """What has stood still for the whole timeout is left to the task."""
    with faults_before(s3) as faults:
        there = s3.at(faults.port)
        faults.fail("hang")
        with pytest.raises(TimeoutError):
            Store(there.url("silent"), there.options, 1.0).read("any")
        assert sum(faults.requests.values()) == 1


def test_a_refusal_is_not_repeated(s3: Server) -> None:
    """What waiting does not mend is asked once."""
    s3.bucket("refusing")
    with faults_before(s3) as faults:
        there = s3.at(faults.port)
        faults.fail("status", status=403, code="AccessDenied")
        with pytest.raises(StorageError, match="access is denied"):
            Store(there.url("refusing"), there.options).write("any", b"")
        assert sum(faults.requests.values()) == 1


def _spoil(faults: Faults, share: float) -> None:
    """Let *share* of all requests fail: with 500, with 503 or with a reset, each as often."""
    # each is asked only where the one before it has not hit
    for rest, how in ((3, {"status": 500}), (2, {"status": 503}), (1, {})):
        faults.fail("status" if how else "reset", share=(share / 3) / (1 - share * (3 - rest) / 3), **how)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "seconds"), [(0.0, 30), (0.08, 30), (0.25, 90)])
def test_all_checkpoints_arrive_although_a_share_of_the_requests_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, seconds: int
) -> None:
    """31 checkpoints of some 180 kB are all there, whole, within so many seconds of flushing, each told in a line."""
    with serving("s3", tmp_path / "s3" / "files") as server, faults_before(server) as faults:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        server.bucket("busy")
        _spoil(faults, share)
        words = tiny(
            tmp_path / "runs", "mine", "wandb=disabled", f"experiment.total_timesteps={256 * _CHECKPOINTS}",
            "algorithm.params.n_steps=256", "checkpoint.every=256", "checkpoint.keep_last=99",
            "algorithm.params.policy_kwargs.net_arch=[80,80]",
            "evaluation.enabled=false", f"storage.flush_timeout={seconds}", *server.at(faults.port).overrides("busy"),
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "rl_research", "train", *words, "--json"],
            env=environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["not_uploaded"] == []
        found = checkpoints.list_checkpoints(checkpoints.remote_store(server.url("busy"), server.options, "mine"))
        assert [checkpoint.global_step for checkpoint in found] == [256 * (k + 1) for k in range(_CHECKPOINTS)]
        for checkpoint in found:
            checkpoint.verify()
        told = re.findall(r"upload of step (\d+): .* made again", done.stderr)
        assert bool(told) == bool(share)
        assert len(told) <= 1.5 * len(set(told)), "a line for each checkpoint, not for each request"
