"""Promises about two machines and one run: one of them writes to its store, and the other is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import environment, outcome, tiny

from rl_research import checkpoints
from rl_research.config import Experiment, load_config
from rl_research.errors import ConfigError, StorageError
from rl_research.runs.run import open_run
from rl_research.storage.lease import FILE, NotYetOurs, RunLease
from rl_research.storage.store import Store
from rl_research.system import started_at
from rl_research.training import stages

Leases = Callable[..., RunLease]


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Leases]:
    """Leases of the run ``mine`` in one store, given up at the end of the test."""
    made: list[RunLease] = []

    def make(seconds: float = 0.6, opener: Callable[[], Store] | None = None) -> RunLease:
        made.append(RunLease(opener or (lambda: Store(tmp_path / "store")), "mine", seconds))
        return made[-1]

    yield make
    for one in made:
        one.release()


def _lease_of(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "store" / FILE).read_text())
    return found


def _leave(tmp_path: Path, **facts: Any) -> dict[str, Any]:
    """A lease as another machine would have left it."""
    holder = {
        "host": "elsewhere", "machine": "another", "process": 7, "since": "1", "token": "theirs",
        "renewed_at": "2026-01-01T00:00:00+00:00", **facts,
    }  # fmt: skip
    (tmp_path / "store").mkdir(exist_ok=True)
    (tmp_path / "store" / FILE).write_text(json.dumps(holder))
    return holder


def _until(happens: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


HOLDER = """
    import sys, time
    from rl_research.storage.store import Store
    from rl_research.storage.lease import RunLease

    lease = RunLease(lambda: Store(sys.argv[1]), "mine", 0.6)
    lease.acquire()
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def _holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "store")],
        stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_living_holder_on_this_machine_is_named(tmp_path: Path, lease: Leases) -> None:
    """A second process is refused at once, with one line that says which has the run open."""
    with _holder(tmp_path) as holder:
        with pytest.raises(ConfigError, match=rf"process {holder.pid} on .* has this run open"):
            lease(seconds=60.0).acquire()
        assert _lease_of(tmp_path)["process"] == holder.pid


def test_a_killed_holder_on_this_machine_gives_the_run_up_at_once(tmp_path: Path, lease: Leases) -> None:
    """After SIGKILL the next process does not wait, whatever ``storage.lease`` says."""
    with _holder(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        _until(lambda: started_at(holder.pid) is None)  # dead, if not yet buried
        mine = lease(seconds=600.0)
        mine.acquire()
        mine.confirm()
        assert _lease_of(tmp_path)["token"] == mine.share.holder["token"]


def test_another_machine_that_is_silent_gives_the_run_up(tmp_path: Path, lease: Leases) -> None:
    """A lease nobody renews is taken over after ``storage.lease`` seconds, not before."""
    _leave(tmp_path)
    mine, waited = lease(seconds=0.5), time.monotonic()
    mine.acquire()
    assert time.monotonic() - waited >= 0.5
    mine.confirm()
    assert _lease_of(tmp_path)["token"] != "theirs"


def test_another_machine_that_lives_keeps_the_run(tmp_path: Path, lease: Leases) -> None:
    """A holder that renews its lease is named, even if its clock is years away from ours."""
    _leave(tmp_path)
    later = threading.Timer(0.3, lambda: _leave(tmp_path, renewed_at="1999-01-01T00:00:00+00:00"))
    later.start()
    with pytest.raises(ConfigError, match="process 7 on elsewhere"):
        lease(seconds=30.0).acquire()
    later.join()
    assert _lease_of(tmp_path)["token"] == "theirs"


def test_the_wait_can_be_interrupted(tmp_path: Path, lease: Leases) -> None:
    """A signal while another machine is watched ends the wait."""

    def stop() -> None:
        raise KeyboardInterrupt

    _leave(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        lease(seconds=60.0).acquire(on_wait=stop)
    assert _lease_of(tmp_path)["token"] == "theirs"


def test_a_lease_that_was_given_up_is_taken_at_once(tmp_path: Path, lease: Leases) -> None:
    """An ended run leaves nobody waiting."""
    first = lease(seconds=60.0)
    first.acquire()
    first.release()
    assert _lease_of(tmp_path)["released"] is True
    second = lease(seconds=60.0)
    second.acquire()
    second.confirm()
    assert _lease_of(tmp_path)["token"] == second.share.holder["token"]


def test_a_lease_is_renewed_while_the_run_is_open(tmp_path: Path, lease: Leases) -> None:
    """A watcher sees the lease change, and it stays the holder's."""
    mine = lease(seconds=0.3)
    mine.acquire()
    seen = (tmp_path / "store" / FILE).stat().st_mtime_ns
    _until(lambda: (tmp_path / "store" / FILE).stat().st_mtime_ns != seen)
    assert _lease_of(tmp_path)["token"] == mine.share.holder["token"]


@pytest.mark.parametrize("released", [False, True])
def test_who_lost_the_run_is_told_and_publishes_nothing(tmp_path: Path, lease: Leases, released: bool) -> None:
    """A machine that was away while another took the run over finds out before it writes again."""
    mine = lease(seconds=600.0)
    mine.acquire()
    mine.check()
    _leave(tmp_path, released=released)
    with pytest.raises(StorageError, match="process 7 on elsewhere has taken this run over"):
        mine.confirm()
    with pytest.raises(StorageError):
        mine.check()
    assert _lease_of(tmp_path)["token"] == "theirs"


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "{}"])
def test_a_lease_that_cannot_be_read_stops_nobody_for_ever(tmp_path: Path, lease: Leases, content: str) -> None:
    """Garbage in the lease's place is replaced."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / FILE).write_text(content)
    mine = lease(seconds=0.3)
    mine.acquire()
    mine.confirm()
    assert _lease_of(tmp_path)["process"] == mine.share.holder["process"]


class _Flaky(Store):
    """A store that cannot be reached while `down` is set."""

    down = True

    def read(self, name: str) -> bytes:
        if _Flaky.down:
            raise ConnectionRefusedError("nobody listens")
        return super().read(name)


def test_a_store_that_cannot_be_reached_delays_nobody(tmp_path: Path, lease: Leases) -> None:
    """Training begins; nothing is published before the store has said whose the run is."""
    _Flaky.down = True
    mine = lease(seconds=0.3, opener=lambda: _Flaky(tmp_path / "store"))
    mine.acquire()
    mine.check()
    with pytest.raises(ConnectionRefusedError):
        mine.confirm()
    _Flaky.down = False
    mine.confirm()
    assert _lease_of(tmp_path)["process"] == mine.share.holder["process"]


def test_once_reachable_a_silent_holder_is_watched_and_a_living_one_kept(tmp_path: Path, lease: Leases) -> None:
    """Who could not ask at the start waits like everybody else before publishing."""
    _Flaky.down = True
    mine = lease(seconds=0.4, opener=lambda: _Flaky(tmp_path / "store"))
    mine.acquire()
    _leave(tmp_path)
    _Flaky.down = False
    with pytest.raises(NotYetOurs):
        mine.confirm()
    _until(lambda: _lease_of(tmp_path)["token"] != "theirs")
    mine.confirm()
    assert _lease_of(tmp_path)["token"] == mine.share.holder["token"]


def test_a_run_that_was_taken_over_stops_and_leaves_the_others_checkpoints(tmp_path: Path) -> None:
    """The process that lost its run commits and publishes nothing more."""
    words = tiny(
        tmp_path / "here", "mine", f"storage.url='{tmp_path / 'there'}'", "wandb=disabled",
        "experiment.total_timesteps=640",
    )  # fmt: skip
    config = load_config(words)
    store = checkpoints.store_of(config)
    assert store is not None

    def train() -> None:
        with open_run(Experiment(config, tuple(words))) as run:
            lease = run.store_lease
            assert lease is not None

            def lose(step: int, _total: int) -> None:
                if step >= 320 and not lease.others:
                    store.write(FILE, json.dumps(_leave(tmp_path)).encode())
                    with pytest.raises(StorageError):
                        lease.confirm()

            stages.train_run(run, lose)

    with pytest.raises(StorageError, match="taken this run over"):
        train()
    assert max(c.global_step for c in checkpoints.local_checkpoints(config.run_dir)) < 640


@pytest.mark.slow
def test_two_machines_started_together_do_not_both_finish(tmp_path: Path) -> None:
    """Of two processes that share only the URL one is refused or stopped, and the other's bits are right."""
    alone = load_config(tiny(tmp_path / "alone", "mine", "wandb=disabled"))
    with open_run(Experiment(alone)) as run:
        stages.score_checkpoint(run, stages.train_run(run))
    url = f"storage.url='{tmp_path / 'store'}'"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACER), *tiny(tmp_path / place, "mine", url)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for place in ("a", "b")
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    ends = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        _, errors = racer.communicate(timeout=120)
        ends.append((racer.returncode, errors))
    assert sorted(code for code, _ in ends) == [0, 2], ends
    assert "has this run open" in "".join(e for _, e in ends) or "taken this run over" in str(ends)
    winner = tmp_path / ("a" if ends[0][0] == 0 else "b") / "mine"
    assert outcome(winner) == outcome(alone.run_dir)
    stored = checkpoints.list_checkpoints(Store(tmp_path / "store" / "mine" / "checkpoints"))
    for checkpoint in stored:
        checkpoint.verify()


RACER = """
    import sys
    from rl_research.training import stages
    from rl_research.config import Experiment, load_config
    from rl_research.errors import RLResearchError
    from rl_research.runs.run import open_run
    from rl_research.uploads import upload_and_announce

    words = [*sys.argv[1:], "wandb=disabled", "experiment.total_timesteps=96"]
    config = load_config(words)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with open_run(Experiment(config, tuple(words))) as run:
            checkpoint = stages.train_run(run)
            run.save(checkpoint=upload_and_announce(run, checkpoint).address)
            stages.score_checkpoint(run, checkpoint)
    except RLResearchError as error:
        sys.stderr.write(str(error))
        sys.exit(error.exit_code)
"""
