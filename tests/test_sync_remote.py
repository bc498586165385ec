"""Compute nodes push to a URL, and a gateway syncs from there: on a real S3 server, and in memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import offline_runs
import pytest
from faults import faults_before
from helpers import children, environment, lives, tiny, wandb_rows
from offline_runs import log_of
from servers import Server
from syncing import call, command, states, sync
from wandb_server import WandbServer

from rl_research.errors import ConfigError
from rl_research.storage import Lease
from rl_research.storage.store import Store
from rl_research.sync import Policy, delivery, open_runs, sync_runs
from rl_research.sync.gateway import LEASE
from rl_research.sync.pushing import push
from rl_research.sync.threaded_store import ThreadedStore
from rl_research.tracking import WandbApi, wandb_private


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs and a long one."""
    folder = tmp_path_factory.mktemp("library")
    offline_runs.make(folder, "bare:one:4", "bare:two:5", "bare:long:6000")
    return folder / "runs"


@pytest.fixture
def bucket(s3: Server, tmp_path: Path) -> str:
    """A bucket of the test's own."""
    name = f"gateway-{tmp_path.name[-30:].strip('_').replace('_', '-').lower()}"
    s3.bucket(name)
    return name


@pytest.fixture(
    params=["s3", pytest.param("gcs", marks=pytest.mark.slow), pytest.param("sftp", marks=pytest.mark.slow)]
)
def store(request: pytest.FixtureRequest) -> Server:
    """Each of the servers."""
    found: Server = request.getfixturevalue(request.param)
    found.bucket("nodes")
    return found


def words(server: Server, path: str) -> list[str]:
    """The URL of *path* and how to reach it, as the command takes them."""
    return [server.url(path), *server.overrides(path)[1:]]


def copied(folder: Path, url: str) -> Store:
    """Copy a folder to *url* as any program would."""
    store = Store(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return store


@pytest.mark.slow
@pytest.mark.parametrize("below", ["runs", ""])
def test_copied_runs_are_synced_and_remembered(below: str, tmp_path: Path, server: WandbServer) -> None:
    """Rows, media and artifacts arrive; the ledger stands at the URL; a second gateway has nothing to do."""
    made = tmp_path / "node"
    offline_runs.make(made, "rich:rich:4", "bare:bare:3")
    (made / "runs/bare/run.json").write_text(json.dumps({"wandb": {"url": None}}))
    (made / "runs/bare/checkpoints").mkdir()
    (made / "runs/bare/checkpoints/huge").write_bytes(b"0" * 10)
    url = f"memory://gateway-{below}-{tmp_path.name}"
    store = copied(made if below else made / "runs", url)
    outcomes = sync(url)
    assert states(outcomes) == {"rich": "synced", "bare": "synced"}
    assert server.run("bare").steps == [0, 1, 2]
    assert {Path(name).suffix for name in server.run("rich").files} >= {".png", ".gif", ".json"}
    assert server.artifacts("in-place-rich")[0].files == {"weights für alle.bin": b"rich" * 100}
    stem = "runs/bare" if below else "bare"
    assert outcomes["bare"].folder == f"{url}/{stem}"
    assert json.loads(store.read(f"{stem}/wandb/sync-bare.json"))["state"] == "synced"
    assert json.loads(store.read(f"{stem}/run.json"))["wandb"]["url"] == outcomes["bare"].url
    asked = server.requests.total()
    assert sync(url) == {}
    assert server.requests.total() == asked
    with log_of(made, "bare").open("ab") as log:
        log.write(b"\0" * 3)
    copied(made / "runs/bare", f"{url}/{stem}")
    assert sync(url)["bare"].state == "synced"
    assert server.run("bare").steps == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("named", ["", "/runs", "/runs/fell", "/runs/fell/wandb"])
def test_a_run_is_the_same_one_by_whatever_url(named: str, tmp_path: Path, server: WandbServer) -> None:
    """Named above, by itself or by its W&B folder: the ledger is where the next sync finds it."""
    offline_runs.make(tmp_path, "bare:fell:5")
    url = f"memory://named-{tmp_path.name}"
    store = copied(tmp_path, url)
    (outcome,) = sync(f"{url}{named}").values()
    assert outcome.state == "synced"
    assert server.run("fell").steps == list(range(5))
    assert [name for name in store.sizes("runs/fell/wandb") if name.startswith("sync-")] == ["sync-fell.json"]
    assert sync(f"{url}{named}") == {}
    assert sync(url) == {}


def test_an_empty_url_is_a_mistake(library: Path, tmp_path: Path) -> None:
    """A URL with nothing below it is said to be that, and so is a segment without its run."""
    with pytest.raises(ConfigError, match="nothing there"):
        sync("memory://nothing-at-all")
    log = log_of(library, "one")
    copied(log.parent, f"memory://{tmp_path.name}/{log.parent.name}")
    with pytest.raises(ConfigError, match="a segment by itself"):
        sync(f"memory://{tmp_path.name}/{log.parent.name}")


@pytest.mark.slow
def test_what_nodes_push_arrives_once(store: Server, tmp_path: Path, server: WandbServer) -> None:
    """Runs of every kind, from a node whose disk is gone by then, with the command alone."""
    node = tmp_path / "node"
    offline_runs.make(node, "apart:apart:5", WANDB_DATA_DIR=str(tmp_path / "elsewhere"))
    offline_runs.make(node, "rich:rich:4", "bare:two:3", "bare:two:2", "bare:fell:5", "plain:plain:6")
    offline_runs.make_killed(node, "bare:dead:30")
    (node / "runs/two/run.json").write_text(json.dumps({"wandb": {"url": None}}))
    (node / "runs/two/checkpoints").mkdir()
    (node / "runs/two/checkpoints/model.zip").write_bytes(b"0" * 10)
    where = words(store, "nodes/läufe")
    run_ids = {"apart": 7, "rich": 6, "two": 5, "fell": 5, "plain": 6, "dead": 30}
    pushed = call(node, "--push", *where)
    assert pushed.returncode == 0, pushed.stderr
    assert {line.split()[0] for line in pushed.stdout.splitlines()} == {"pushed"}
    assert f"pushed     two: 5 of 5 rows, 0 files, 0 artifacts, {where[0]}/two" in pushed.stdout
    there = store.files("nodes")
    assert "läufe/two/run.json" in there
    assert not [name for name in there if "checkpoints" in name or "sync-" in name]
    again = call(node, "--push", *where, "--json")
    assert {run["state"] for run in json.loads(again.stdout)["runs"]} == {"unchanged"}
    for folder in (node, tmp_path / "elsewhere"):
        shutil.rmtree(folder)

    done = call(*where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(run_ids)
    for run_id, rows in run_ids.items():
        assert [row["_step"] for row in server.run(run_id).rows] == list(range(rows)), run_id
    assert server.run("dead").state == "failed"
    for run_id in ("apart", "rich"):
        media = {Path(name).suffix for name in server.run(run_id).files}
        assert media >= {".png", ".gif", ".json"}
        for kind in ("staged", "in-place", "reference"):
            (artifact,) = server.artifacts(f"{kind}-{run_id}")
            assert artifact.state == "COMMITTED"
    ledger = json.loads(store.files("nodes")["läufe/two/wandb/sync-two.json"])
    assert (ledger["state"], ledger["rows"], ledger["begun"]) == ("synced", 5, False)
    assert not [name for name in store.files("nodes") if LEASE in name], "the leases are given up"
    asked = server.requests.total()
    assert call(*where).stdout == "nothing to sync: no offline run is there\n"
    assert server.requests.total() == asked


@pytest.mark.slow  # trains
def test_a_trained_run_stands_beside_its_checkpoints(
    s3: Server, bucket: str, tmp_path: Path, server: WandbServer
) -> None:
    """Pushed to its own ``storage.url``, a real run is synced from there; its checkpoints stay."""
    where = words(s3, f"{bucket}/runs")
    train = ["train", *tiny(tmp_path / "runs", "mine", *s3.overrides(f"{bucket}/runs")), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "rl_research", *train],
        env=environment(WANDB_ENTITY="tester"), capture_output=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before = {k: v for k, v in s3.files(bucket).items() if "/checkpoints/" in k}
    assert call(tmp_path / "runs", "--push", *where).stdout.startswith("pushed     mine: ")
    rows = wandb_rows(tmp_path / "runs" / "mine")
    shutil.rmtree(tmp_path / "runs")
    synced = call(*where)
    assert synced.returncode == 0, synced.stdout
    assert server.run("mine").steps == [step for step, _ in rows]
    after = s3.files(bucket)
    assert {name: after[name] for name in before} == before != {}
    assert json.loads(after["runs/mine/run.json"])["wandb"]["url"] in synced.stdout


@pytest.mark.slow
def test_a_run_that_is_being_written_is_not_pushed(tmp_path: Path) -> None:
    """What is pushed is whole; what has gone on since is pushed again."""
    url = tmp_path / "shared"
    program = offline_runs.stay(tmp_path, "bare:alive:7")
    try:
        alive = call(tmp_path / "runs", "--push", url)
        assert (alive.returncode, alive.stdout.split()[0]) == (0, "live")
        assert not url.exists()
    finally:
        offline_runs.kill(program)
    assert call(tmp_path / "runs", "--push", url).stdout.startswith("pushed     alive: 7 of 7 rows")
    offline_runs.make(tmp_path, "bare:alive:2")
    assert call(tmp_path / "runs", "--push", url).stdout.startswith("pushed     alive: 9 of 9 rows")


@pytest.mark.slow
def test_a_killed_run_from_elsewhere_is_live_until_it_is_silent(
    library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's own time tells when a log without an end was written last, not when it was fetched."""
    monkeypatch.setattr("platform.node", lambda: "gateway")
    folder = offline_runs.copy(library / "one", tmp_path / "shared" / "one")
    log = log_of(folder, "one")
    log.write_bytes(log.read_bytes()[:-20])
    url = (tmp_path / "shared").as_uri()
    assert states(sync(url)) == {"one": "live"}
    eleven_minutes_ago = time.time() - 660
    os.utime(log, (eleven_minutes_ago, eleven_minutes_ago))
    assert states(sync(url)) == {"one": "synced"}
    assert server.run("one").state == "failed"


@pytest.mark.slow  # waits until a gateway is at work, twice
@pytest.mark.parametrize("arrived", [False, True])
def test_a_gateway_that_is_killed_repeats_nothing(
    arrived: bool,
    library: Path,
    s3: Server,
    bucket: str,
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL ends all that the gateway had begun; the next one sends what is missing, at once.

    Also where rows have *arrived* and the gateway was never told.
    """
    where = words(s3, f"{bucket}/runs")
    assert call(library, "--push", *where).returncode == 0
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TIMEOUT_SECONDS", "600")
    monkeypatch.setenv("WANDB_X_FILE_STREAM_RETRY_MAX", "100")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    hang = 0.0 if arrived else 600.0
    stuck = server.fail("file_stream", hang=hang, run="long", lose_answer=arrived, rows=True)
    gateway = subprocess.Popen(command(*where), env=environment(), stdout=subprocess.PIPE)
    _until(lambda: stuck.hits > 0 and arrived == bool(server.run("long").rows))
    begun = children(gateway.pid)
    gateway.kill()
    gateway.wait()
    _until(lambda: not any(map(lives, begun)))
    assert arrived == bool(server.run("long").rows)
    server.heal()
    done = call(*where)
    assert done.returncode == 0, done.stdout + done.stderr
    for run_id, rows in {"one": 4, "two": 5, "long": 6000}.items():
        assert server.run(run_id).steps == list(range(rows))
    assert not list(tmp_path.glob("rl-research-*")), "what the killed one left is removed"


@pytest.mark.slow  # waits until a gateway is at work
def test_a_second_gateway_is_told_who_is_at_work(
    library: Path, s3: Server, bucket: str, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes that sync one URL one leaves a run alone that the other has."""
    where = words(s3, f"{bucket}/runs")
    assert call(library, "--push", *where).returncode == 0
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TIMEOUT_SECONDS", "600")
    server.fail("file_stream", hang=600, n=1)
    first = subprocess.Popen(command(*where, "--json"), env=environment(), stdout=subprocess.PIPE)
    try:
        _until(lambda: server.requests["file_stream"] >= 1)
        second = call(*where)
        assert second.returncode == 75
        lines = second.stdout.splitlines()
        assert sorted(line.split()[1] for line in lines) == ["long:", "one:", "two:"]
        for line in lines:
            assert line.startswith("busy ")
            assert f"process {first.pid} on " in line
        of_one = call(f"{where[0]}/one", *where[1:])
        assert of_one.stdout.startswith("busy       one: "), of_one.stdout + of_one.stderr
        server.heal()
        assert first.wait(timeout=60) == 0
    finally:
        first.kill()
        first.wait()
    for run_id, rows in {"one": 4, "two": 5, "long": 6000}.items():
        assert server.run(run_id).steps == list(range(rows))


@pytest.mark.slow  # two processes, twice
def test_gateways_that_start_together_send_each_row_once(
    library: Path, s3: Server, bucket: str, server: WandbServer
) -> None:
    """However they fall: what one does not sync, the other does, and nothing is there twice."""
    for attempt in range(2):
        folder = f"{bucket}/together-{attempt}"
        where = words(s3, folder)
        assert call(library, "--push", *where).returncode == 0
        both = [
            subprocess.Popen(command(*where, "--json"), env=environment(), stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        told = [json.loads(gateway.communicate(timeout=100)[0])["runs"] for gateway in both]
        found = {(run["run_id"], run["state"]) for runs in told for run in runs}
        assert {state for _, state in found} <= {"synced", "busy"}, found
        assert call(*where).returncode == 0
        for run_id, rows in {"one": 4, "two": 5, "long": 6000}.items():
            assert server.run(run_id).steps == list(range(rows))
        server.backend.runs.clear()


@pytest.mark.slow
def test_what_is_begun_stands_at_the_url_before_a_row_is_sent(
    library: Path, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a SIGKILL the next gateway knows; where the server does not say what it has, it sends nothing."""
    url = f"memory://begun-{tmp_path.name}"
    store = copied(library / "one", f"{url}/one")
    seen: list[bytes] = []

    def watched(*args, **kwargs):  # type: ignore[no-untyped-def]  # as `send`
        seen.append(store.read("wandb/sync-one.json"))
        return send(*args, **kwargs)

    send = delivery.send
    monkeypatch.setattr(delivery, "send", watched)
    assert states(sync(url)) == {"one": "synced"}
    assert json.loads(seen[0])["begun"] is True
    assert json.loads(store.read("wandb/sync-one.json"))["begun"] is False
    store.write("wandb/sync-one.json", seen[0])
    monkeypatch.setattr(WandbApi, "ask_for_run", lambda *_: None)
    assert states(sync(url)) == {"one": "retryable"}
    assert len(seen) == 1
    assert server.run("one").steps == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_gateway_that_has_lost_a_run_sends_nothing_of_it(library: Path, tmp_path: Path, server: WandbServer) -> None:
    """Whoever took it over while this one slept has it; the store is asked again before each try."""
    url = f"memory://lost-{tmp_path.name}"
    store = copied(library, url)
    theirs = {"host": "elsewhere", "machine": "another", "process": 7, "token": "theirs"}
    with open_runs([url]) as runs:
        store.write(f"one/wandb/{LEASE}", json.dumps(theirs).encode())
        outcomes = {outcome.run_id: outcome for outcome in sync_runs(runs, Policy())}
    assert states(outcomes) == {"one": "busy", "two": "synced", "long": "synced"}
    assert "process 7 on elsewhere" in outcomes["one"].line()
    assert "one" not in server.run_ids
    assert json.loads(store.read(f"one/wandb/{LEASE}")) == theirs
    assert "sync-one.json" not in store.sizes("one/wandb")


@pytest.mark.slow
def test_what_cannot_be_had_is_not_pushed_on_as_unchanged(library: Path, tmp_path: Path) -> None:
    """From a URL to another: a run that another gateway has is said to be busy."""
    url = f"memory://from-{tmp_path.name}"
    store = copied(library / "one", f"{url}/one")
    with open_runs([url]) as first, open_runs([url]) as second:
        assert [run.absent for run in first] == [None]
        (outcome,) = push(second, f"memory://to-{tmp_path.name}")
    assert (outcome.state, outcome.remedy) == ("busy", "")
    assert "is syncing it" in outcome.reason
    assert store.sizes("wandb") == {}


@pytest.mark.slow
def test_a_line_that_is_cut_is_for_later(library: Path, s3: Server, bucket: str, server: WandbServer) -> None:
    """A reset passes unseen; a store that stays away is said in a line, and stops no other folder."""
    assert call(library / "one", "--push", *words(s3, f"{bucket}/runs")).returncode == 0
    with faults_before(s3) as faults:
        where = words(s3.at(faults.port), f"{bucket}/runs")
        faults.fail("reset", times=3)
        done = call(*where)
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.run("one").steps == [0, 1, 2, 3]
        faults.fail("reset")
        later = call(*where, library / "two")
        assert (later.returncode, later.stderr) == (75, "")
        lines = sorted(later.stdout.splitlines())
        assert len(lines) == 2
        assert lines[0].startswith(f"retryable  {where[0]}: ")
        assert lines[1].startswith("synced     two: 5 of 5 rows")
        push = call(library / "one", "--push", *where)
        assert (push.returncode, push.stdout.split()[0]) == (75, "retryable")


@pytest.mark.slow
def test_who_may_not_remove_gives_a_run_up_by_a_word(
    library: Path, s3: Server, bucket: str, server: WandbServer
) -> None:
    """Without the right to remove objects all is synced, and the lease that stays stops nobody."""
    assert call(library / "one", "--push", *words(s3, f"{bucket}/runs")).returncode == 0
    with faults_before(s3) as faults:
        where = words(s3.at(faults.port), f"{bucket}/runs")
        faults.fail("status", status=403, code="AccessDenied", methods=("POST", "DELETE"))
        done = call(*where)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.run("one").steps == [0, 1, 2, 3]
    left = json.loads(s3.files(bucket)[f"runs/one/wandb/{LEASE}"])
    assert left["released"] is True


@pytest.mark.slow
def test_a_store_that_refuses_is_said_in_a_line(library: Path, s3: Server, bucket: str, server: WandbServer) -> None:
    """No such bucket, no right to read or to write: exit code 2, the reason, and nothing is sent."""
    missing = call(*words(s3, "no-such-bucket/runs"))
    assert missing.returncode == 2
    assert len((missing.stdout + missing.stderr).splitlines()) == 1
    assert "no-such-bucket" in missing.stdout + missing.stderr
    assert call(library / "one", "--push", *words(s3, f"{bucket}/runs")).returncode == 0
    with faults_before(s3) as faults:
        where = words(s3.at(faults.port), f"{bucket}/runs")
        for methods in (("GET",), ("PUT",)):
            faults.clear()
            faults.fail("status", status=403, code="AccessDenied", methods=methods)
            refused = call(*where)
            assert (refused.returncode, refused.stderr) == (2, "")
            (line,) = refused.stdout.splitlines()
            assert line.startswith(f"blocked    {where[0]}: storage.url={where[0]}: cannot ")
    assert server.requests.total() == 0


# ---------------------------------------------------------------- the leases by themselves


@pytest.fixture
def stores(tmp_path: Path) -> Callable[[], ThreadedStore]:
    """Open a place with one lease in it."""
    return lambda: ThreadedStore(tmp_path.as_uri())


def _of_another_machine(tmp_path: Path, token: str) -> None:
    (tmp_path / LEASE).write_text(json.dumps({"host": "elsewhere", "machine": "another", "process": 7, "token": token}))


def test_a_silent_gateway_is_outwaited_and_a_living_one_is_not(
    tmp_path: Path, stores: Callable[[], ThreadedStore]
) -> None:
    """No clock is compared: what changes while it is watched is alive."""
    _of_another_machine(tmp_path, "silent")
    begun = time.monotonic()
    with stores() as mine, Lease(mine.mine, [LEASE], 0.6, 0.3, removed_at_end=True).held() as lease:
        assert time.monotonic() - begun > 0.6
        lease.confirm()
        assert (lease.mine, lease.others) == ({LEASE}, {})
        first = (tmp_path / LEASE).read_text()
        assert "silent" not in first
    assert not (tmp_path / LEASE).exists()

    class Lively(ThreadedStore):
        def mine(self) -> Store:
            _of_another_machine(tmp_path, str(time.monotonic()))
            return super().mine()

    with Lively(tmp_path.as_uri()) as mine, Lease(mine.mine, [LEASE], 0.6, 0.3, removed_at_end=True).held() as lease:
        assert (lease.mine, lease.others) == (set(), {LEASE: "process 7 on elsewhere"})
    assert (tmp_path / LEASE).exists(), "what is another's is not removed"


@pytest.mark.slow
def test_what_is_ours_is_renewed_while_another_is_outwaited(
    tmp_path: Path, stores: Callable[[], ThreadedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are and however slow the store is, none of them seems silent meanwhile."""
    names = [f"{number}.json" for number in range(32)]
    written: dict[str, list[float]] = {name: [] for name in [*names, LEASE]}

    class Slow(Store):
        def read(self, name: str) -> bytes:
            time.sleep(0.1)
            return super().read(name)

        def write(self, name: str, data: bytes) -> None:
            super().write(name, data)
            written[name].append(time.monotonic())

    _of_another_machine(tmp_path, "silent")
    with stores() as mine:
        monkeypatch.setattr(mine, "mine", lambda: Slow(tmp_path.as_uri()))
        with Lease(mine.mine, [*names, LEASE], 3.0, 0.3, removed_at_end=True).held() as lease:
            (taken_over,) = written[LEASE]
            assert lease.mine == {*names, LEASE}
    for name in names:
        times = [*(moment for moment in written[name] if moment < taken_over), taken_over]
        assert max(after - before for before, after in pairwise(times)) < 3.0 * 2 / 3, name
    assert not any((tmp_path / name).exists() for name in names)


def test_a_connection_that_is_lost_ends_neither_the_renewal_nor_the_sync(
    tmp_path: Path, stores: Callable[[], ThreadedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that cannot even be opened is opened again; at the end the lease stays, and that is all."""
    asked: list[bool] = []
    away = threading.Event()

    def mine_unless_away(mine: Callable[[], Store]) -> Store:
        if away.is_set():
            asked.append(True)
            raise ConnectionResetError("cut")
        return mine()

    with stores() as mine:
        monkeypatch.setattr(mine, "mine", partial(mine_unless_away, mine.mine))
        with Lease(mine.mine, [LEASE], 0.6, 0.3, removed_at_end=True).held():
            away.set()
            _until(lambda: len(asked) > 1)
            away.clear()
            first = (tmp_path / LEASE).stat().st_mtime_ns
            _until(lambda: (tmp_path / LEASE).stat().st_mtime_ns != first)
            away.set()
    assert (tmp_path / LEASE).exists()


def test_of_two_that_took_a_run_in_the_same_moment_one_gives_it_up(
    tmp_path: Path, stores: Callable[[], ThreadedStore]
) -> None:
    """Who has written last has it; a store that was slow to take the word makes nobody sure."""
    with stores() as mine, Lease(mine.mine, [LEASE], 0.6, 0.3, removed_at_end=True).held() as lease:
        _of_another_machine(tmp_path, "theirs")
        lease.confirm()
        assert (lease.mine, lease.others) == (set(), {LEASE: "process 7 on elsewhere"})
    (tmp_path / LEASE).unlink()

    class Slow(Store):
        def write(self, name: str, data: bytes) -> None:
            time.sleep(0.4)
            super().write(name, data)

    with stores() as mine:
        mine._own.store = Slow(tmp_path.as_uri())
        with Lease(mine.mine, [LEASE], 0.6, 0.3, removed_at_end=True).held() as lease:
            assert lease.mine == {LEASE}
            assert list(lease.unsure) == [LEASE]
    assert not (tmp_path / LEASE).exists()


def test_a_gateway_that_was_away_too_long_notices(tmp_path: Path, stores: Callable[[], ThreadedStore]) -> None:
    """Its lease is renewed while it works; once another has it, it is not written over."""
    with stores() as mine, Lease(mine.mine, [LEASE], 0.6, 0.3, removed_at_end=True).held() as lease:
        first = (tmp_path / LEASE).stat().st_mtime_ns
        _until(lambda: (tmp_path / LEASE).stat().st_mtime_ns != first)
        _of_another_machine(tmp_path, "theirs")
        _until(lambda: not lease.mine)
    assert "theirs" in (tmp_path / LEASE).read_text()


def _until(happens: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_the_key_of_a_server_with_a_port_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `wandb login --host` has written is found under the name that it has written, with the port."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1:8080\n  login user\n  password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert WandbApi("http://127.0.0.1:8080").key == "secret"
    assert WandbApi("http://127.0.0.1:9090").key is None
    netrc.write_text("machine api.wandb.ai\n  login user\n  password earlier\n")
    assert WandbApi(wandb_private.DEFAULT_SERVER).key == "earlier", "of a login with an earlier version of wandb"
