"""Pruning takes what no run needs, and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers import Call, environment, record_of, tiny, upload
from servers import Server

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint, remote_store
from rl_research.config import Experiment, compose_experiment, load_config
from rl_research.errors import ConfigError
from rl_research.pruning import Pruned, Rules, orphans as orphans_module, prune_place
from rl_research.runs.run import open_run
from rl_research.storage.store import Store
from rl_research.system.units import parsed_size, parsed_time, shown_size, shown_time
from rl_research.training import stages
from rl_research.training.resume import finished_result

DAY = 86400.0
KEEP = {"keep_last": 1, "keep_best": 0, "keep_every": 0}


def _commit(
    run_dir: Path, step: int, *, keep: Mapping[str, int] | None = None, rows: int = 0, **facts: Any
) -> Checkpoint:
    """A checkpoint whose manifest says what its run keeps; with *rows* it has a replay segment."""
    described = {"config": {"checkpoint": dict(keep)}} if keep else {}
    segments = [(f"rows-{rows:012d}-{rows + 9:012d}", b"s" * rows)] if rows else []
    files = {"model.zip": b"m" * step}
    return checkpoints.commit(run_dir, step, files, {**described, **facts}, segments=segments)


def _later(days: float = 2.0, **rules: Any) -> Rules:
    """The rules as they would be applied some days from now, when what is there has aged."""
    return Rules(now=time.time() + days * DAY, **rules)


def _files(place: Store | Path) -> dict[str, int]:
    store = place if isinstance(place, Store) else Store(place)
    return {name: entry.size for name, entry in store.entries().items() if ".lease" not in name}


def _whole(store: Store) -> list[int]:
    """The steps in *store*, each read and hashed."""
    found = checkpoints.list_checkpoints(store)
    for checkpoint in found:
        checkpoint.verify()
    return [checkpoint.global_step for checkpoint in found]


def _places(pruned: Pruned) -> list[str]:
    return [reason for _, reason in pruned.spared]


# ---------------------------------------------------------------- retention


@pytest.mark.parametrize(
    ("every", "kept"),
    [(0, [70]), (1, [10, 20, 30, 40, 50, 60, 70]), (25, [30, 50, 70]), (30, [30, 60, 70]), (99, [70])],
)
def test_one_checkpoint_per_so_many_steps_is_kept(tmp_path: Path, every: int, kept: list[int]) -> None:
    """Of every `keep_every` steps the first at or after the multiple stays, in folder and store alike."""
    store = remote_store(f"memory://{tmp_path.name}", {}, "run")
    for step in range(10, 80, 10):
        checkpoints.upload(_commit(tmp_path / "run", step), store)
        for prune in (lambda keep: checkpoints.prune(tmp_path / "run", keep),
                      lambda keep: checkpoints.prune_store(store, keep)):  # fmt: skip
            prune(checkpoints.Retention(1, 0, every))
    assert _whole(Store(tmp_path / "run/checkpoints")) == kept
    assert _whole(store) == kept


def test_what_a_segment_went_on_from_is_kept_while_it_is_under_way(tmp_path: Path) -> None:
    """The checkpoint that the newest one's segment began with stays, until a manifest names none."""
    for step in (10, 20, 30):
        _commit(tmp_path, step)
    for step in (40, 50):
        _commit(tmp_path, step, resumed_from="step-000000010")
        checkpoints.prune(tmp_path, checkpoints.Retention(1, 0))
    assert _whole(Store(tmp_path / "checkpoints")) == [10, 50]
    _commit(tmp_path, 60, resumed_from=None)
    checkpoints.prune(tmp_path, checkpoints.Retention(1, 0))
    assert _whole(Store(tmp_path / "checkpoints")) == [60]


def test_a_real_run_keeps_what_it_resumes_from_and_every_milestone(tmp_path: Path) -> None:
    """A resumed run keeps its starting point beside its newest until it is done, and every milestone."""
    words = tiny(
        tmp_path, "mine", "wandb=disabled", "evaluation.enabled=false", "checkpoint.every=16",
        "checkpoint.keep_last=1", "checkpoint.keep_best=0", "checkpoint.keep_every=48",
    )  # fmt: skip
    with open_run(compose_experiment([*words, "experiment.total_timesteps=64"])) as run:
        stages.train_run(run)
    assert _whole(Store(run.dir / "checkpoints")) == [48, 64]
    seen: list[list[int]] = []
    with open_run(compose_experiment([*words, "experiment.total_timesteps=128"])) as run:
        stages.train_run(run, lambda *_: seen.append(_whole(Store(run.dir / "checkpoints"))))
    assert [48, 64, 96, 112] in seen
    assert _whole(Store(run.dir / "checkpoints")) == [48, 96, 128]


def test_a_store_is_pruned_as_its_run_says(tmp_path: Path) -> None:
    """What a last upload could not prune goes as the run's newest manifest says; no other run's goes."""
    url = f"memory://{tmp_path.name}/a bucket/rüns"
    for name in ("run-a", "run-b"):
        for step in (10, 20, 30):
            keep = {**KEEP, "keep_last": 1 if name == "run-a" else 3}
            made = _commit(tmp_path / name, step, keep=keep, rows=step)
            checkpoints.upload(made, remote_store(url, {}, name))
    before = _files(remote_store(url, {}, "run-b"))
    assert prune_place(url, Rules()).removed == [], "all of it is young"
    pruned = prune_place(url, _later())
    assert _whole(remote_store(url, {}, "run-a")) == [30]
    assert [name for name in _files(remote_store(url, {}, "run-a")) if "rows" in name] == [
        name for name in before if "rows-000000000030" in name
    ]
    assert _files(remote_store(url, {}, "run-b")) == before
    assert pruned.runs == 2
    assert pruned.bytes_left == sum(before.values()) + sum(_files(remote_store(url, {}, "run-a")).values())


# ---------------------------------------------------------------- orphans


def _littered(tmp_path: Path, store: Store) -> tuple[set[str], set[str]]:
    """A store with two checkpoints and all kinds of litter; the names that go, and that stay."""
    for step in (10, 20):
        checkpoints.upload(_commit(tmp_path / "run", step, rows=step), store)
    stay = set(_files(store)) | {"lease.json", "notes.txt", "step-000000020/deep/er.txt"}
    litter = {
        "step-000000030/model.zip", "step-000000030/uploading.json", "step-000000020/uploading.json",
        "step-000000010/stranger.bin", "replay/rows-000000000099-000000000100-abc.npz",
        ".step-000000040.0a1b2c3d.tmp/model.zip", "replay/.rows-1.npz.00ff.tmp", ".x.00ff.tmp",
    }  # fmt: skip
    for name in litter | (stay - set(_files(store))):
        store.write(name, b'{"released": true}' if name == "lease.json" else b"{}")
    return litter, stay


@pytest.mark.parametrize("scheme", ["path", "file", "memory"])
def test_orphans_go_when_they_are_old_and_nothing_else_does(tmp_path: Path, scheme: str) -> None:
    """Cut-off uploads, spare segments, staging folders, strangers go; lease, notes, checkpoints stay."""
    url = {
        "path": str(tmp_path / "störe 1"),
        "file": f"file://{tmp_path}/störe 1",
        "memory": f"memory://{tmp_path.name}/störe 1",
    }[scheme]
    store = remote_store(url, {}, "run")
    litter, stay = _littered(tmp_path, store)
    assert prune_place(url, Rules()).removed == []
    assert set(_files(store)) == litter | stay
    dry = prune_place(url, _later(dry_run=True))
    assert set(_files(store)) == litter | stay
    pruned = prune_place(url, _later())
    assert pruned.bytes_removed == dry.bytes_removed == 2 * len(litter)
    assert set(_files(store)) == stay
    assert _whole(store) == [10, 20]
    assert prune_place(url, _later()).removed == []


def test_a_young_file_spares_its_whole_folder(tmp_path: Path) -> None:
    """An upload of many hours is not cut down from its old end."""
    store = remote_store(str(tmp_path / "store"), {}, "run")
    for name in ("step-000000010/a.bin", "step-000000010/b.bin", "step-000000020/a.bin"):
        store.write(name, b"x")
    old = time.time() - 3 * DAY
    for name in ("step-000000010/a.bin", "step-000000020/a.bin"):
        os.utime(store.path(name), (old, old))
    prune_place(str(tmp_path / "store"), Rules())
    assert set(_files(store)) == {"step-000000010/a.bin", "step-000000010/b.bin"}


def test_segments_that_an_upload_under_way_counts_on_are_spared(tmp_path: Path) -> None:
    """An old segment stays while a young announcement names it, and the upload ends whole."""
    made = _commit(tmp_path / "run", 10, rows=10)
    store = remote_store(str(tmp_path / "store"), {}, "run")
    (segment,) = made.segments
    checkpoints.upload(made, store)
    (Path(store.path(made.name)) / "manifest.json").rename(Path(store.path(made.name)) / "uploading.json")
    old = time.time() - 3 * DAY
    for name in _files(store):
        os.utime(store.path(name), (old, old))

    calls: list[int] = []

    def confirm() -> None:  # called at the beginning, and when all but the manifest has been sent
        calls.append(1)
        if len(calls) == 2:
            prune_place(str(tmp_path / "store"), Rules())

    checkpoints.upload(made, store, confirm)
    assert len(calls) == 2
    assert _whole(store) == [10]
    assert f"replay/{segment}" in _files(store)


def test_a_checkpoint_completed_meanwhile_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looked like an orphan and has got its manifest before its turn stays, segments included."""
    made = _commit(tmp_path / "run", 10, rows=10)
    store = remote_store(str(tmp_path / "store"), {}, "run")
    checkpoints.upload(made, store)
    text = store.read(f"{made.name}/manifest.json")
    store.remove(f"{made.name}/manifest.json")
    honest = orphans_module.find_orphans
    looks: list[int] = []

    def find(store: Store, before: float, gone: Any = ()) -> Any:
        looks.append(len(found := honest(store, before, gone).old))
        result = honest(store, before, gone)
        if len(looks) == 1 and found:
            store.write(f"{made.name}/manifest.json", text)  # the uploader is done just now
        return result

    monkeypatch.setattr(orphans_module, "find_orphans", find)
    monkeypatch.setattr("rl_research.pruning.places.find_orphans", find)
    prune_place(str(tmp_path / "store"), _later())
    assert looks == [2, 0]
    assert _whole(store) == [10]


def test_of_an_unreadable_manifest_nothing_goes(tmp_path: Path) -> None:
    """Where a manifest cannot be read, nobody knows which segments it needs, so all of them stay."""
    store = remote_store(str(tmp_path / "store"), {}, "run")
    for step in (10, 20):
        checkpoints.upload(_commit(tmp_path / "run", step, rows=step), store)
    store.write("step-000000010/manifest.json", b'{"format": 99')
    before = _files(store)
    prune_place(str(tmp_path / "store"), _later())
    assert _files(store) == before


def test_a_waiting_replacement_is_no_orphan(tmp_path: Path) -> None:
    """A checkpoint set aside by a replacement that was cut off is still the only one at its step."""
    made = _commit(tmp_path / "run", 10, rows=10)
    folder = Path(made.address)
    folder.rename(folder.with_name(f".{made.name}.former"))
    (tmp_path / "run/run.json").write_text("{}")
    before = _files(tmp_path / "run")
    prune_place(str(tmp_path / "run"), _later())
    assert _files(tmp_path / "run") == before
    checkpoints.sweep(tmp_path / "run")
    assert _whole(Store(tmp_path / "run/checkpoints")) == [10]


class Timeless(MemoryFileSystem):
    """A file system that tells no times."""

    protocol = "timeless"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's form: one store per class
    pseudo_dirs = [""]  # noqa: RUF012  # likewise

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """Without the time of creation."""
        found = super().ls(path, detail=True, **kwargs)
        bare = [{k: v for k, v in info.items() if k != "created"} for info in found]
        return bare if detail else [info["name"] for info in bare]


def test_where_no_times_are_told_nothing_goes_and_that_is_said(tmp_path: Path) -> None:
    """Without modification times nobody knows what is under way."""
    fsspec.register_implementation("timeless", Timeless, clobber=True)
    store = remote_store("timeless://here", {}, "run")
    litter, stay = _littered(tmp_path, store)
    pruned = prune_place("timeless://here", _later())
    assert set(_files(store)) == litter | stay
    assert any("their times are not told" in reason for reason in _places(pruned))


@pytest.mark.parametrize("kind", ["s3", "gcs", "sftp", "az"])
def test_real_servers_are_swept(request: pytest.FixtureRequest, kind: str, tmp_path: Path, call: Call) -> None:
    """On S3, GCS and SFTP two runs share a bucket: the litter of one goes, all else stays."""
    server: Server = request.getfixturevalue(kind)
    server.bucket("swept")
    url, options = server.url("swept/my prefix"), server.options
    store = remote_store(url, options, "run")
    _, stay = _littered(tmp_path, store)
    other = remote_store(url, options, "other")
    checkpoints.upload(_commit(tmp_path / "other", 5, rows=5), other)
    theirs = _files(other)
    words = [f"storage.options.{key}='{value}'" for key, value in options.items()]
    code, out, _ = call("prune", url, *words, "--json")
    assert (code, json.loads(out)["bytes_removed"]) == (0, 0), "all of it is young"
    prune_place(url, _later(options=options))
    assert set(_files(store)) == stay
    assert _whole(store) == [10, 20]
    assert _files(other) == theirs
    assert _whole(other) == [5]


# ---------------------------------------------------------------- runs that are open, or refuse


def test_an_open_run_is_left_alone(tmp_path: Path) -> None:
    """While a process has a run open, here or in the store, nothing of it goes, and that is said."""
    words = tiny(tmp_path / "runs", "mine", "wandb=disabled", f"storage.url='{tmp_path}/store'")
    with open_run(compose_experiment(words)) as run:
        stages.train_run(run)
        litter = run.dir / "checkpoints/step-000009999/model.zip"
        litter.parent.mkdir()
        litter.write_bytes(b"x")
        stored = remote_store(str(tmp_path / "store"), {}, "mine")
        stored.write("step-000009999/model.zip", b"x")
        before = _files(run.dir), _files(stored)
        for place in ("runs", "store"):
            pruned = prune_place(str(tmp_path / place), Rules(grace=0.0, budget=0, older_than=0.0))
            assert pruned.removed == []
            assert any("has this run open" in reason for reason in _places(pruned))
        assert (_files(run.dir), _files(stored)) == before
    for place in ("runs", "store"):
        assert prune_place(str(tmp_path / place), Rules(grace=0.0)).bytes_removed == 1


def test_a_run_being_pruned_cannot_be_opened(tmp_path: Path) -> None:
    """What prunes a run folder holds its lease, so that nobody starts the run in the middle."""
    config = load_config(tiny(tmp_path, "mine", "wandb=disabled"))
    _commit(config.run_dir, 10)
    (config.run_dir / "run.json").write_text("{}")
    (config.run_dir / ".writing-x").write_bytes(b"x")
    refused: list[str] = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        with pytest.raises(ConfigError) as caught, open_run(Experiment(config)):
            pass
        refused.append(str(caught.value))
        honest(path, missing_ok)

    honest = Path.unlink
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: (
            unlink(path, missing_ok) if path.name == ".writing-x" else honest(path, missing_ok)
        ))  # fmt: skip
        prune_place(str(tmp_path), _later())
    assert len(refused) == 1
    assert not (config.run_dir / ".writing-x").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_folder_that_may_not_be_changed_is_one_line(tmp_path: Path, call: Call) -> None:
    """Where the disk forbids it, a line names the folder, the other runs are pruned, the exit code is 2."""
    for name in ("a", "b"):
        _commit(tmp_path / "runs" / name, 10)
        (tmp_path / "runs" / name / "checkpoints/step-000000020").mkdir()
        (tmp_path / "runs" / name / "checkpoints/step-000000020/x").write_bytes(b"x")
    locked = tmp_path / "runs/a/checkpoints/step-000000020"
    locked.chmod(0o500)
    code, _, err = call("prune", str(tmp_path / "runs"), "--grace", "0s")
    locked.chmod(0o700)
    assert code == 2
    assert "no right to" in err
    assert not (tmp_path / "runs/b/checkpoints/step-000000020").exists()


def test_a_refusal_is_one_line_and_the_others_go_on(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may not be removed is named in a line, with exit code 2; the runs after it are pruned."""
    for name in ("a", "b"):
        _commit(tmp_path / "store" / name, 10)
        Store(tmp_path / "store" / name).write("checkpoints/step-000000020/x", b"x")
    honest = Store.remove

    def remove(store: Store, name: str) -> None:
        if "/a/" in store.path(name):
            raise PermissionError(13, "Permission denied", store.path(name))
        honest(store, name)

    monkeypatch.setattr(Store, "remove", remove)
    code, out, err = call("prune", str(tmp_path / "store"), "--grace", "0s", "--json")
    assert code == 2
    lines = [line for line in err.splitlines() if "no right to" in line]
    assert len(lines) >= 1
    assert "a/checkpoints/step-000000020/x" in lines[0]
    assert "Traceback" not in err
    assert json.loads(out)["bytes_removed"] == 1


KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from rl_research.checkpoints import local_checkpoints
from rl_research.pruning import Rules, prune_place

made, everything = Path(sys.argv[1]), dict(budget=1, older_than=-60.0, local_checkpoints=True)

def counted(operation, left):
    def wrapper(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(*args, **kwargs)
    return wrapper

def whole(place):
    found = local_checkpoints(place / "run")
    for checkpoint in found:
        checkpoint.verify()
    return [checkpoint.global_step for checkpoint in found]

for k in range(1, 80):
    place = made.with_name(f"killed-{k}")
    shutil.copytree(made, place)
    if (child := os.fork()) == 0:
        left = [k]
        for name in ("unlink", "remove", "rmdir", "replace", "rename", "mkdir"):
            setattr(os, name, counted(getattr(os, name), left))
        prune_place(str(place), Rules(grace=-60.0, **everything))
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    seen = whole(place)
    prune_place(str(place), Rules(grace=-60.0))
    print(json.dumps({"killed": killed, "seen": seen, "again": whole(place)}))
    if not killed:
        break
"""


@pytest.mark.parametrize("kind", ["store", "folder"])
def test_killed_before_any_file_operation_every_checkpoint_is_whole(tmp_path: Path, kind: str) -> None:
    """Wherever a pruning is killed, what has a manifest is whole, and a second one completes it."""
    made = tmp_path / "made"
    for step in (10, 20, 30):
        _commit(made / "run", step, keep={**KEEP, "keep_last": 2}, rows=step)
    (made / "run/checkpoints/step-000000040").mkdir()
    (made / "run/checkpoints/step-000000040/model.zip").write_bytes(b"x")
    if kind == "folder":
        record = {"status": "finished", "finished_at": "2026-01-01T00:00:00+00:00"}
        (made / "run/run.json").write_text(json.dumps(record))
        (made / "run/videos").mkdir()
        (made / "run/videos/a.mp4").write_bytes(b"x" * 50)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(made)],
        env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(points) > 5, "the pruning was never interrupted"
    assert [point["killed"] for point in points] == [True] * (len(points) - 1) + [False]
    possible = [[10, 20, 30], [20, 30], *([[30], []] if kind == "folder" else [])]
    assert all(point["seen"] in possible for point in points), points
    assert all(point["again"] in possible[1:] for point in points), points
    assert points[-1]["again"] == possible[-1]


# ---------------------------------------------------------------- the budget


def _finished(folder: Path, finished_at: str, *, url: str | None = None, weight: int = 1000, **record: Any) -> Path:
    """A finished run with a checkpoint (in its storage, too, if *url* is given), a film, a page."""
    made = _commit(folder, weight)
    facts = {"status": "finished", "finished_at": finished_at, "global_step": 96, **record}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text(json.dumps({"storage": {"url": url}}))
    (folder / "report.html").write_bytes(b"p" * 10)
    (folder / "videos").mkdir()
    (folder / "videos/film.mp4").write_bytes(b"f" * 500)
    if url:
        checkpoints.upload(made, remote_store(url, {}, folder.name))
    return folder


def _held(folder: Path) -> set[str]:
    return {name for name in ("checkpoints", "videos", "report.html") if (folder / name).exists()}


ALL = {"checkpoints", "videos", "report.html"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three finished runs, each with its checkpoints in storage, the oldest named last."""
    for name, day in (("c", 1), ("b", 2), ("a", 3)):
        url = str(tmp_path / "store")
        _finished(tmp_path / "runs" / name, f"2026-01-0{day}T00:00:00+00:00", url=url)
    return tmp_path / "runs"


def test_the_budget_takes_just_enough_and_heavy_parts_of_the_oldest_first(runs: Path) -> None:
    """Checkpoints go before films, the longest finished run's first, and no more than the budget asks."""
    total = sum(_files(runs).values())
    own = sum(_files(runs / "c/checkpoints").values())

    def held(budget: int) -> list[set[str]]:
        pruned = prune_place(str(runs), Rules(budget=budget))
        assert abs(pruned.bytes_left - sum(_files(runs).values())) < 300  # the records' notes
        return [_held(runs / name) for name in ("c", "b", "a")]

    light = ALL - {"checkpoints"}
    assert held(total) == [ALL, ALL, ALL]
    assert held(total - 1) == [light, ALL, ALL]
    assert held(total - own + 300) == [light, ALL, ALL]
    assert held(total - 2 * own + 300) == [light, light, ALL]
    assert held(total - 3 * own + 600) == [light, light, light]
    now = sum(_files(runs).values())
    assert held(now - 100) == [{"report.html"}, light, light]
    assert held(0) == [{"report.html"}] * 3


def test_what_went_under_a_budget_is_noted_and_still_there(runs: Path) -> None:
    """The record says so, the run is still finished, and its checkpoint is found in its storage."""
    prune_place(str(runs), Rules(budget=0))
    record = record_of(runs / "c")
    assert record["pruned"]["bytes"] > 1500
    assert record["status"] == "finished"
    assert checkpoints.find("c", runs_dir=runs).address.startswith(str(runs.parent / "store"))
    config = load_config([f"runs_dir='{runs}'", "run_id=c", "experiment.total_timesteps=96"])
    assert finished_result(config) is not None


def test_a_dry_run_changes_nothing_and_says_the_same(runs: Path) -> None:
    """A dry run promises what the real one then does, byte for byte, and leaves every file as it is."""
    litter = runs / "c/checkpoints/step-000002000"
    litter.mkdir()
    (litter / "x").write_bytes(b"xyz")

    def state() -> dict[str, tuple[int, int]]:
        stats = {str(p): p.stat() for p in runs.rglob("*")}
        return {name: (s.st_size, s.st_mtime_ns) for name, s in stats.items()}

    before = state()
    rules = {"budget": 0, "now": time.time() + 2 * DAY}
    dry = prune_place(str(runs), Rules(dry_run=True, **rules))
    assert state() == before
    real = prune_place(str(runs), Rules(**rules))
    assert dry.bytes_removed == real.bytes_removed
    assert [r.path for r in dry.removed] == [r.path for r in real.removed]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda run, store: _record(run, status="interrupted"), None),
        (lambda run, store: _record(run, status="running"), None),
        (lambda run, store: _record(run, finished_at="2999-01-01T00:00:00+00:00"), "less than 7 d"),
        (lambda run, store: _log(run), "W&B logs are not known to be delivered"),
        (lambda run, store: (run / "config.yaml").unlink(), "lie nowhere else"),
        (lambda run, store: shutil.rmtree(store), "not complete in its storage"),
        (lambda run, store: (store / "c/checkpoints/step-000001000/model.zip").unlink(), "not complete"),
        (lambda run, store: _cut(store / "c/checkpoints/step-000001000/model.zip"), "not complete"),
        (lambda run, store: _commit(run, 2000), "not complete in its storage"),
        (lambda run, store: _commit(run, 1000, other="facts", rows=5), "not the same checkpoint"),
        (lambda run, store: _storage(run, "memory://elsewhere"), "not complete in its storage"),
        (lambda run, store: _storage(run, "nonsense://elsewhere"), "its storage refuses"),
    ],
    ids=["interrupted", "running", "young", "W&B", "nowhere", "no store", "file gone", "file cut",
         "one more", "another", "other store", "no client"],
)  # fmt: skip
def test_what_may_not_go_stays_and_the_reason_is_said(
    tmp_path: Path, spoil: Callable[[Path, Path], Any], reason: str | None
) -> None:
    """Unfinished, young, undelivered, or not complete in storage: nothing goes, whatever the budget."""
    store = tmp_path / "store"
    run = _finished(tmp_path / "runs/c", "2026-01-01T00:00:00+00:00", url=str(store))
    spoil(run, store)
    before = _files(tmp_path / "runs")
    pruned = prune_place(str(tmp_path / "runs"), Rules(budget=0))
    assert _files(tmp_path / "runs") == before
    assert "over the budget" in _places(pruned)[0]
    assert reason is None or reason in _places(pruned)[1]


def _cut(file: Path) -> None:
    file.write_bytes(b"")


def _record(run: Path, **facts: Any) -> None:
    (run / "run.json").write_text(json.dumps({**record_of(run), **facts}))


def _storage(run: Path, url: str) -> None:
    (run / "config.yaml").write_text(json.dumps({"storage": {"url": url}}))


def _log(run: Path) -> None:
    folder = run / "wandb/offline-run-20260101_000000-c"
    folder.mkdir(parents=True)
    (folder / "run-c.wandb").write_bytes(b":W&B")


def test_local_checkpoints_go_only_when_that_is_asked_for(tmp_path: Path) -> None:
    """A run without storage keeps its checkpoints, unless the user says that they may go."""
    run = _finished(tmp_path / "runs/c", "2026-01-01T00:00:00+00:00")
    prune_place(str(tmp_path / "runs"), Rules(budget=0))
    assert _held(run) == ALL
    prune_place(str(tmp_path / "runs"), Rules(budget=0, local_checkpoints=True))
    assert _held(run) == {"report.html"}


def test_a_real_run_survives_its_pruning(tmp_path: Path, call: Call) -> None:
    """A trained, uploaded, pruned run is still listed, verified and recognised as finished."""
    words = tiny(tmp_path / "runs", "mine", "wandb=disabled", f"storage.url='{tmp_path}/störe'")
    with open_run(compose_experiment(words)) as run:
        checkpoint = stages.train_run(run)
        stages.score_checkpoint(run, checkpoint)
        for each in checkpoints.local_checkpoints(run.dir):
            upload(run, each)
    kept = ("run.json", "scores.json", "progress.csv", "config.yaml")
    place = str(tmp_path / "runs")
    code, out, _ = call("prune", place, "--budget", "1kB", "--older-than", "0s")
    assert code == 0
    assert f"{place}/mine/checkpoints" in out
    assert not (run.dir / "checkpoints").exists()
    assert all((run.dir / name).exists() for name in kept)
    assert finished_result(load_config(words)) is not None
    code, out, err = call("verify", "mine@latest", "--runs-dir", place)
    assert code == 0, err
    assert f"{tmp_path}/störe/mine/checkpoints/step-000000096" in out


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "5XB"), "--budget=5XB: should be a size such as 50GB"),
        (("--budget", "-1"), "budget"),
        (("--grace", "soon"), "--grace=soon: should be a time such as 24h"),
        (("rnus",), "Did you mean 'runs'?"),
        (("runs", "--buget=5GB"), "Did you mean '--budget'?"),
        (("runs", "seed=3"), "seed=3: no folder of runs there"),
    ],
)
def test_a_mistaken_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, words: tuple[str, ...], said: str
) -> None:
    """Bad sizes and times, unknown folders and options are said in a line, and nothing goes."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, err = call("prune", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_nothing_to_prune_is_fine(tmp_path: Path, call: Call) -> None:
    """An empty folder of runs and an empty prefix are pruned without a word of complaint."""
    (tmp_path / "runs").mkdir()
    code, out, err = call("prune", str(tmp_path / "runs"), f"memory://{tmp_path.name}/nothing")
    assert (code, err) == (0, "")
    assert out.count("removed 0 B; 0 runs 0 B") == 2


@pytest.mark.parametrize(
    ("text", "size"), [("50GB", 50 * 10**9), ("1.5 GiB", 3 << 29), ("812", 812), ("1_000 kb", 10**6), ("0", 0)]
)
def test_sizes_are_read_as_they_are_written(text: str, size: int) -> None:
    """Decimal and binary units, with or without a space."""
    assert parsed_size("x", text) == size


def test_quantities_are_shown_as_they_are_read() -> None:
    """What is shown fits its unit."""
    shown = [shown_size(n) for n in (0, 999, 1000, 99_949, 123_456, 10**9, 2 * 10**12)]
    assert shown == ["0 B", "999 B", "1.0 kB", "99.9 kB", "123 kB", "1.0 GB", "2.0 TB"]
    assert [parsed_time("x", t) for t in ("90min", "24h", "7d", "0s")] == [5400, 86400, 604800, 0]
    assert [shown_time(t) for t in (-3, 41, 600, 36000, 9 * DAY)] == [
        "0 s", "41 s", "10 min", "10 h", "9 d",
    ]  # fmt: skip


# ---------------------------------------------------------------- the flow


@pytest.mark.usefixtures("prefect_api")
def test_the_flow_prunes_each_place_in_a_task_and_shows_a_table(tmp_path: Path) -> None:
    """The scheduled flow prunes every place, returns what went, and its table says it."""
    from prefect import get_client

    from rl_research.flows.prune import prune

    url = str(tmp_path / "store")
    _finished(tmp_path / "runs/c", "2026-01-01T00:00:00+00:00", url=url)
    done = prune([str(tmp_path / "runs"), url], budget="10B")
    assert [place["place"] for place in done["places"]] == [str(tmp_path / "runs"), url]
    assert done["bytes_removed"] > 1500
    assert _held(tmp_path / "runs/c") == {"report.html"}
    with get_client(sync_client=True) as client:
        tables = [a for a in client.read_artifacts() if a.key == "prune"]
    assert any("runs/c/checkpoints" in str(table.data) for table in tables)


@pytest.mark.usefixtures("prefect_api")
def test_a_mistake_fails_the_flow_with_its_line(tmp_path: Path) -> None:
    """A folder that is not there, or a size that is none, is the state's message."""
    from rl_research.flows.prune import prune

    for words in ({"places": [str(tmp_path / "rnus")]}, {"budget": "many"}):
        state = prune(**words, return_state=True)
        assert state.is_failed()
        assert "no folder of runs" in state.message or "should be a size" in state.message
