"""A store that vanishes or fills in the middle of a run costs warnings; kills leave nothing that stays.

Slow because whole commands are started.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faults import Faults, faults_before
from helpers import environment, record_of, steps_committed, tiny
from prefect.settings import PREFECT_API_URL
from servers import Server, serving

from rl_research import checkpoints
from rl_research.pruning import Rules, prune_place

pytestmark = pytest.mark.slow

PREFIX = "läufe mit leerzeichen/试验"
DAY = 86400.0


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """A proxy before an S3 server of the test's own, whose keys are in the environment."""
    with serving("s3", tmp_path / "s3" / "files") as server, faults_before(server) as found:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        yield found


def _train(tmp_path: Path, faults: Faults, steps: int) -> list[str]:
    through = faults.server.at(faults.port)
    return [
        sys.executable, "-m", "rl_research", "train",
        *tiny(tmp_path / "runs", "mine", "wandb=disabled", f"experiment.total_timesteps={steps}",
              "checkpoint.every=512", "checkpoint.keep_last=99", "evaluation.every=1024",
              "storage.retry_for=5", *through.overrides(f"gone/{PREFIX}")),
        "--json",
    ]  # fmt: skip


def _stored(faults: Faults) -> list[int]:
    """The steps that are whole in the bucket, each read and hashed."""
    server = faults.server
    store = checkpoints.remote_store(server.url(f"gone/{PREFIX}"), server.options, "mine")
    found = checkpoints.list_checkpoints(store)
    for checkpoint in found:
        checkpoint.verify()
    return [checkpoint.global_step for checkpoint in found]


def _has_manifest(bucket: Path) -> bool:
    """Whether a checkpoint is whole in the *bucket*, whose server may remove a folder while it is read."""
    with suppress(FileNotFoundError):
        return bool(list(bucket.rglob("step-*/manifest.json")))
    return False


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("trouble", "reason", "remedy"),
    [
        ("vanishes", "there is no such bucket (NoSuchBucket)", "Make it, or correct storage.url"),
        ("fills", "the store is full (507 XMinioStorageFull)", "Free space or raise the quota"),
        ("quota", "the store is full (XMinioAdminBucketQuotaExceeded)", "Free space or raise the quota"),
    ],
)
def test_a_store_that_is_lost_in_the_middle_of_a_run_is_no_failure(
    tmp_path: Path, faults: Faults, trouble: str, reason: str, remedy: str
) -> None:
    """Exit code 0, a line per checkpoint with reason and remedy; the files stay, the next start delivers."""
    bucket = faults.server.bucket("gone")
    command = _train(tmp_path, faults, 6144)
    env = environment(PREFECT_API_URL=str(PREFECT_API_URL.value()))
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not _has_manifest(bucket) and time.monotonic() < deadline:
            time.sleep(0.01)
        if trouble == "vanishes":
            bucket.rename(bucket.with_name("hidden"))
        else:
            status, code = (507, "XMinioStorageFull") if trouble == "fills" else (400, reason[19:-1])
            faults.fail("status", status=status, code=code, methods=("PUT", "POST"))
        out, err = child.communicate(timeout=240)
    finally:
        child.kill()
    assert child.returncode == 0, err
    result, folder = json.loads(out), tmp_path / "runs/mine"
    committed = steps_committed(folder)
    left = result["not_uploaded"]
    assert result["status"] == "finished"
    assert left
    assert 6144 in left
    assert record_of(folder)["not_uploaded"] == left
    lines = [line for line in err.splitlines() if f"step {left[-1]} is not uploaded" in line]
    assert lines
    assert all(reason in line and remedy in line and str(folder) in line for line in lines), err
    assert "Traceback" not in err

    if trouble == "vanishes":
        (bucket.with_name("hidden")).rename(bucket)
        time.sleep(0.3)  # the server looks at its folder every 0.1 s
    faults.clear()
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["not_uploaded"] == []
    assert _stored(faults) == committed == steps_committed(folder)


UPLOADER = """
import sys
from pathlib import Path
from rl_research import checkpoints
store = checkpoints.remote_store(sys.argv[2], eval(sys.argv[3]), "ein-lauf")
for checkpoint in checkpoints.local_checkpoints(Path(sys.argv[1])):
    checkpoints.upload(checkpoint, store)
"""


@pytest.mark.parametrize("kind", ["s3", "gcs", "sftp", "az"])
def test_after_kills_and_a_pruning_nothing_is_left_and_the_next_upload_is_whole(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """SIGKILL in the middle of uploads: pruned, the store holds whole checkpoints only; then all of them."""
    server: Server = request.getfixturevalue(kind)
    server.bucket("kills")
    run_dir = tmp_path / "ein-lauf"
    for step in (10, 20, 30):
        checkpoints.commit(run_dir, step, {"model.zip": bytes(20 << 20), "counters.json": b"{}"}, {})
    url = server.url(f"kills/{PREFIX}")
    with faults_before(server) as proxy:
        through = server.at(proxy.port)
        words = [str(run_dir), through.url(f"kills/{PREFIX}"), repr(through.options)]
        proxy.fail("slow", rate=60e6)
        for megabytes in (10, 30):
            proxy.sent = 0
            process = subprocess.Popen([sys.executable, "-c", UPLOADER, *words], env=environment())
            deadline = time.monotonic() + 60
            while proxy.sent < megabytes << 20 and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    rules = Rules(now=time.time() + 2 * DAY, options=server.options)
    pruned = prune_place(url, rules)
    assert pruned.refused == []
    store = checkpoints.remote_store(url, server.options, "ein-lauf")
    whole = checkpoints.list_checkpoints(store)
    named = {f"{c.name}/{base}" for c in whole for base in (*c.files, "manifest.json")}
    assert set(store.entries()) == named
    for checkpoint in whole:
        checkpoint.verify()
    assert prune_place(url, rules).removed == []
    for checkpoint in checkpoints.local_checkpoints(run_dir):
        checkpoints.upload(checkpoint, store)
    assert [c.global_step for c in checkpoints.list_checkpoints(store)] == [10, 20, 30]


def test_a_name_that_no_store_or_service_takes_is_a_line(tmp_path: Path) -> None:
    """A run_id with spaces or letters beyond ASCII is refused before anything is written."""
    for name in ("mein lauf", "läufe", "试验", "a/b"):
        words = ["train", *tiny(tmp_path / "runs", None), f"run_id='{name}'"]
        done = subprocess.run(
            [sys.executable, "-m", "rl_research", *words],
            env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"run_id={name}: use 1 to 64 letters" in done.stderr
    assert not (tmp_path / "runs").exists()
