"""``rl-research sync`` as people and scripts meet it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import offline_runs
import pytest
from helpers import environment
from syncing import call, command
from wandb_server import WandbServer


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs."""
    folder = tmp_path_factory.mktemp("library")
    offline_runs.make(folder, "bare:one:4", "bare:two:5")
    return folder / "runs"


@pytest.mark.slow
def test_a_line_per_run_and_a_code_for_scripts(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Without words it takes ``runs``; 75 says later, 2 that somebody has to act, 0 that all is there."""
    offline_runs.copy(library, tmp_path / "runs")
    looked = call("--dry-run", cwd=tmp_path)
    assert looked.returncode == 75
    assert "would be looked at" in looked.stdout
    assert server.requests.total() == 0

    server.fail("file_stream", status=503, run="one")
    later = call("--tries", "1", cwd=tmp_path)
    assert later.returncode == 75
    lines = sorted(later.stdout.splitlines())
    assert lines[0].startswith("retryable  one: 0 of 4 rows: ")
    assert lines[1].startswith("synced     two: 5 of 5 rows, ")

    server.heal()
    server.fail("file_stream", status=403, run="one")
    blocked = call("--json", cwd=tmp_path)
    assert blocked.returncode == 2
    answer = json.loads(blocked.stdout)
    assert answer["exit_code"] == 2
    told = {run["run_id"]: run for run in answer["runs"]}
    assert (told["one"]["state"], told["two"]["state"]) == ("blocked", "unchanged")
    assert told["one"]["remedy"].startswith("Ask for the right")

    server.heal()
    done = call("--json", cwd=tmp_path)
    assert done.returncode == 0, "the rights were mended on the server, and nobody has to force anything"
    assert {run["state"] for run in json.loads(done.stdout)["runs"]} == {"synced", "unchanged"}
    assert server.run("one").steps == [0, 1, 2, 3]
    assert "unchanged  one: 4 of 4 rows" in call("runs/one", cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_failure_that_passes_is_tried_again(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """A second try in the same command delivers what the first could not."""
    folder = offline_runs.copy(library / "one", tmp_path / "one")
    server.fail("file_stream", status=503, n=2)
    done = call(str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].startswith("synced     one: 4 of 4 rows")
    assert len(done.stdout.splitlines()) == 1


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    """A path that is not there is said to be that; an empty folder is no mistake."""
    missing = call("nowhere", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr == (
        "rl-research: nowhere: nothing there. Name a runs folder, a run folder, a W&B folder or a URL.\n"
    )
    (tmp_path / "file.txt").touch()
    for words, said in {
        ("file.txt",): f"{tmp_path / 'file.txt'}: no W&B log. Name one, or a folder that holds some.",
        (".", "--push", ""): "--push: no URL. Name one such as s3://bucket/runs, or a folder.",
    }.items():
        wrong = call(*words, cwd=tmp_path)
        assert (wrong.returncode, wrong.stderr) == (2, f"rl-research: {said}\n")
    (tmp_path / "empty").mkdir()
    empty = call("empty", cwd=tmp_path)
    assert (empty.returncode, empty.stdout) == (0, "nothing to sync: no offline run is there\n")


def test_without_its_ledger_nothing_is_sent(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Where nobody could know afterwards what has arrived, a line says so and no row leaves."""
    folder = offline_runs.copy(library / "one", tmp_path / "one")
    (folder / "wandb" / "sync-one.json").mkdir()
    done = call(folder)
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith("blocked    one: its ledger cannot be written: ")
    assert server.requests["UpsertBucket"] == 0


@pytest.mark.slow
def test_watching_follows_until_stopped(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """A run that appears while it watches is delivered; SIGTERM ends it well."""
    runs = tmp_path / "runs"
    offline_runs.copy(library / "one", runs / "one")
    watch = subprocess.Popen(
        command(runs, "--watch", "--every", 1),
        env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert watch.stdout is not None
        assert watch.stdout.readline().startswith("synced     one: 4 of 4 rows")
        offline_runs.copy(library / "two", runs / "two")
        assert watch.stdout.readline().startswith("synced     two: 5 of 5 rows")
        time.sleep(1.5)
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(timeout=30) == 0
        assert watch.stdout.read() == "", "nothing is said twice"
    finally:
        watch.kill()
        watch.wait()
    assert server.run("two").steps == [0, 1, 2, 3, 4]


def test_in_a_posix_locale_names_are_what_they_are(tmp_path: Path) -> None:
    """Also where Python's UTF-8 mode was switched off: words and folders with letters beyond ASCII work."""
    done = subprocess.run(
        command("läufe"), cwd=tmp_path, env={**environment(), "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("rl-research: läufe: nothing there."), done.stderr
