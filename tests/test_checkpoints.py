"""A checkpoint is whole or it is not there, wherever it lies and whatever kills its writer."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint, Manifest, Scores
from rl_research.checkpoints.writer import FORMER
from rl_research.errors import CheckpointDamaged, CheckpointError, CheckpointMissing, StorageError
from rl_research.storage import Store, is_transient

FILES = {"model.zip": b"model" * 100, "state.pkl": b"", "vecnormalize.npz": bytes(range(256))}


def _commit(run_dir: Path, step: int = 7, **facts: Any) -> Checkpoint:
    return checkpoints.commit(run_dir, step, FILES, facts)


def _contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.read(name) for name in checkpoint.files}


def _manifest(checkpoint: Checkpoint) -> Path:
    return Path(checkpoint.address) / "manifest.json"


# ---------------------------------------------------------------- committing


def test_a_commit_is_what_was_given(tmp_path: Path) -> None:
    """A commit returns, and a reader finds, the files, their sizes and hashes, the step and the facts."""
    made = _commit(tmp_path, 7, name="mine", scores={"mean": 1.5})
    found = checkpoints.find(tmp_path)
    for checkpoint in (made, found):
        assert _contents(checkpoint) == FILES
        assert checkpoint.global_step == 7
        assert checkpoint.manifest.name == "mine"
        assert checkpoint.manifest.facts()["scores"] == {"mean": 1.5}
        assert checkpoint.files["model.zip"] == (500, hashlib.sha256(FILES["model.zip"]).hexdigest())
    assert os.listdir(tmp_path / "checkpoints") == ["step-000000007"]
    assert set(os.listdir(found.address)) == {*FILES, "manifest.json"}


def test_steps_sort_by_number(tmp_path: Path) -> None:
    """The newest checkpoint is the one with most steps, also beyond nine digits."""
    for step in (5, 2_000_000_000, 40, 999_999_999):
        _commit(tmp_path, step)
    steps = [c.global_step for c in checkpoints.list_checkpoints(Store(tmp_path / "checkpoints"))]
    assert steps == [5, 40, 999_999_999, 2_000_000_000]
    assert checkpoints.find(tmp_path).global_step == 2_000_000_000


def test_the_same_step_again_replaces_the_former(tmp_path: Path) -> None:
    """Committing a step twice leaves the second commit, and no file of the first."""
    checkpoints.commit(tmp_path, 7, {"old.bin": b"old", "model.zip": b"old"}, {"turn": 1})
    checkpoints.commit(tmp_path, 7, {"model.zip": b"new"}, {"turn": 2})
    found = checkpoints.find(tmp_path)
    assert (found.manifest.facts()["turn"], _contents(found)) == (2, {"model.zip": b"new"})
    assert os.listdir(found.address).count("old.bin") == 0
    assert os.listdir(tmp_path / "checkpoints") == ["step-000000007"]


def test_added_facts_are_found_again(tmp_path: Path) -> None:
    """Scores that become known later join the manifest and change no file."""
    checkpoints.add_facts(_commit(tmp_path, 7, name="mine"), scores={"mean": 3.0})
    found = checkpoints.find(tmp_path)
    assert found.manifest.facts()["scores"] == {"mean": 3.0}
    assert found.manifest.name == "mine"
    assert _contents(found) == FILES


def test_a_commit_below_a_file_says_so(tmp_path: Path) -> None:
    """A run folder that cannot be made is a `StorageError` of one line with the path."""
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(StorageError, match="a file stands where a folder is needed") as caught:
        _commit(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "run") in str(caught.value)


# ---------------------------------------------------------------- manifests and scores

OLD = sorted((Path(__file__).parent / "data/old_main").rglob("manifest.json"))


@pytest.mark.parametrize("path", OLD, ids=[path.parent.name for path in OLD])
def test_a_manifest_of_version_0_1_is_written_back_byte_for_byte(path: Path) -> None:
    """Other machines compare manifests by their bytes, so reading one and writing it adds nothing."""
    assert Manifest.model_validate_json(path.read_bytes()).to_json() == path.read_bytes()


def test_keys_of_other_versions_are_kept() -> None:
    """What this version does not know, at any depth, and numbers as they were written, survive."""
    scores = {"mean": 1, "std": float("nan"), "median": 2.5}
    file = {"size": 1, "sha256": "0" * 64, "codec": "zstd"}
    facts = {"global_step": 7, "files": {"a.bin": file}, "scores": scores, "later": {"deep": [1, 2.0]}}
    text = (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode()
    assert Manifest.model_validate_json(text).to_json() == text


def test_a_manifest_holds_scores_without_their_episodes(tmp_path: Path) -> None:
    """The summary and what it takes to play again join the manifest; the returns stay in scores.json."""
    scores = Scores.of([1.0, 3.0], [10, 20], first_seed=5, deterministic=True)
    assert (scores.mean, scores.std, scores.episodes) == (2.0, 1.0, 2)
    checkpoints.add_facts(_commit(tmp_path), final_scores=scores)
    kept = checkpoints.find(tmp_path).manifest.final_scores
    assert kept is not None
    assert kept.facts() == {"mean": 2.0, "std": 1.0, "episodes": 2, "first_seed": 5, "deterministic": True}


# ---------------------------------------------------------------- killed while committing

# In a process of its own: commit, then commit again in a fork that kills itself with SIGKILL just before
# its k-th file operation, for every k; print for each k what a reader finds.
CRASHES = """
    import json, os, signal, sys
    from pathlib import Path
    from rl_research import checkpoints
    from rl_research.errors import CheckpointError

    root, scenario = Path(sys.argv[1]), sys.argv[2]
    WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")

    def files(tag):
        return {"model.zip": tag.encode() * 50, "state.pkl": tag.encode() * 3}

    def prepare(run):
        checkpoints.commit(run, 10, files("a"), {"tag": "a", "scores": {"mean": 9.0}})
        if scenario == "prune":
            for step in (20, 30, 40):
                checkpoints.commit(run, step, files("a"), {"tag": "a", "scores": {"mean": 1.0}})

    def act(run):
        if scenario == "next":
            checkpoints.commit(run, 20, files("b"), {"tag": "b"})
        elif scenario == "same":
            checkpoints.commit(run, 10, files("b"), {"tag": "b"})
        elif scenario == "facts":
            checkpoints.add_facts(checkpoints.find(run), tag="a", late=1)
        else:
            checkpoints.prune(run, checkpoints.Retention(1, 1))

    def look(run):
        found = {}
        for folder in sorted((run / "checkpoints").glob("step-*")):
            if (folder / "manifest.json").exists():
                try:
                    checkpoint = checkpoints.find(folder)
                    whole = all(
                        checkpoint.read(name) == files(checkpoint.manifest.facts()["tag"])[name]
                        for name in checkpoint.files
                    ) and len(checkpoint.files) == 2
                except CheckpointError:
                    whole = False
                found[folder.name] = whole
        return found

    for k in range(1, 500):
        run = root / str(k)
        prepare(run)
        child = os.fork()
        if child == 0:
            count = 0
            def strike(event, arguments):
                global count
                if event in WATCHED and str(root) in str(arguments[0]):
                    count += 1
                    if count == k:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(strike)
            act(run)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        seen = look(run)
        checkpoints.sweep(run)  # what the next start does first
        swept = look(run)
        act(run)
        again = look(run)
        checkpoints.commit(run, 50, files("c"), {"tag": "c"})
        checkpoints.prune(run, checkpoints.Retention(1, 0))  # once the replaced step has gone, too
        print(json.dumps({"k": k, "killed": killed, "seen": seen, "swept": swept, "again": again,
                          "pruned": look(run)}))
        if not killed:
            break
"""


def _crashes(folder: Path, scenario: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CRASHES), str(folder), scenario],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(points) >= 3, "the driver found nothing to interrupt"
    assert [point["killed"] for point in points] == [True] * (len(points) - 1) + [False]
    return points


@pytest.mark.parametrize("scenario", ["next", "same", "facts", "prune"])
def test_killed_before_any_file_operation_nothing_is_torn(tmp_path: Path, scenario: str) -> None:
    """Wherever a commit or a pruning is killed, every folder with a manifest holds what it promises."""
    for point in _crashes(tmp_path, scenario):
        assert all(point["seen"].values()), point
        assert all(point["swept"].values()), point
        assert all(point["again"].values()), point
        assert point["pruned"] == {"step-000000050": True}, point


@pytest.mark.parametrize("left", ["final", "nothing"])
def test_a_replaced_checkpoint_that_was_half_removed_never_comes_back(tmp_path: Path, left: str) -> None:
    """A former checkpoint killed while it was being removed is no checkpoint, whatever lies beside it."""
    _commit(tmp_path, 10)
    final = tmp_path / "checkpoints" / "step-000000010"
    former = final.with_name(".step-000000010.former")
    if left == "final":
        shutil.copytree(final, former)
    else:
        final.rename(former)
    (former / "manifest.json").unlink()
    (former / "model.zip").unlink()
    _commit(tmp_path, 20)
    checkpoints.prune(tmp_path, checkpoints.Retention(1, 0))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000000020"]


@pytest.mark.parametrize("scenario", ["next", "same", "facts", "prune"])
def test_killed_before_any_file_operation_a_checkpoint_remains(tmp_path: Path, scenario: str) -> None:
    """Wherever a commit or a pruning is killed, the next start finds the kept checkpoints again."""
    kept = {"prune": {"step-000000010", "step-000000040"}}.get(scenario, {"step-000000010"})
    for point in _crashes(tmp_path, scenario):
        assert kept <= set(point["swept"]), f"lost before file operation {point['k']}"


WRITER = """
    import os, secrets, sys
    from pathlib import Path
    from rl_research.checkpoints import Retention, commit, prune

    run, step = Path(sys.argv[1]), int(sys.argv[2])
    commit(run / "first", 0, {"a.bin": b""}, {})  # imports and builds what every commit needs
    print("ready", flush=True)
    while True:
        for _ in range(2):
            tag = secrets.token_bytes(8) * 5_000
            commit(run, step, {"a.bin": tag, "b.bin": tag, "c.bin": tag}, {})
        prune(run, Retention(2, 0))
        step += 1
"""


@pytest.mark.slow
def test_killed_at_random_moments_no_reader_sees_a_torn_one(tmp_path: Path) -> None:
    """Through 15 SIGKILLs of a busy writer, what a manifest names can be read whole or is gone."""
    chance = random.Random(0)
    store = Store(tmp_path / "checkpoints")
    reads, step = 0, 0
    for _ in range(15):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), str(step)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + chance.uniform(0.02, 0.25)
        while time.monotonic() < deadline:
            reads += _read_all(store, alive=True)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        left = checkpoints.list_checkpoints(store)
        reads += _read_all(store, alive=False)
        step = left[-1].global_step + 1 if left else 0
    assert step > 15, "the writer hardly came to write"
    assert reads > 15, "the reader hardly came to read"
    orphans = [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("step-")]
    with_manifest = [p for p in orphans if (p / "manifest.json").exists()]
    assert with_manifest


def _read_all(store: Store, *, alive: bool) -> int:
    """How many checkpoints could be read whole; a writer that is *alive* may take one away meanwhile."""
    whole = 0
    for checkpoint in checkpoints.list_checkpoints(store):
        try:
            contents = _contents(checkpoint)
        except CheckpointError:
            assert alive, f"{checkpoint.name} is torn, and nobody is at work on it"
            continue
        assert len({bytes(data) for data in contents.values()}) == 1, "files of two commits"
        whole += 1
    return whole


def test_what_a_killed_writer_leaves_is_swept(tmp_path: Path) -> None:
    """The next commit and pruning remove half-written folders that no manifest names."""
    _commit(tmp_path, 10)
    parent = tmp_path / "checkpoints"
    for name in (".step-000000020.0badf00d.tmp", "step-000000005"):
        (parent / name).mkdir()
        (parent / name / "model.zip").write_bytes(b"half")
        old = time.time() - 7 * 86_400
        os.utime(parent / name, (old, old))
    _commit(tmp_path, 30)
    checkpoints.prune(tmp_path, checkpoints.Retention(2, 0))
    assert sorted(os.listdir(parent)) == ["step-000000010", "step-000000030"]


def test_a_step_is_committed_again_over_what_a_kill_left(tmp_path: Path) -> None:
    """A replacement killed between its file operations does not hinder the next commit of that step."""
    folder = Path(_commit(tmp_path, 7).address)
    former = folder.with_name(f".{folder.name}{FORMER}")
    former.mkdir()
    (former / "model.zip").write_bytes(b"former")
    _commit(tmp_path, 7, turn=2)
    assert checkpoints.find(tmp_path).manifest.facts()["turn"] == 2


# ---------------------------------------------------------------- finding


@pytest.fixture(params=["runs/a", "mit leerzeichen/ünïcödé 试验"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run folder with two checkpoints, one of them below a difficult path."""
    folder: Path = tmp_path / request.param
    _commit(folder, 7)
    _commit(folder, 12)
    return folder


@pytest.mark.parametrize(
    ("form", "step"),
    [
        ("{run}", 12),
        ("{run}/", 12),
        ("{run}/checkpoints", 12),
        ("{run}/checkpoints/", 12),
        ("{run}/checkpoints/step-000000007", 7),
        ("{run}/checkpoints/step-000000007/", 7),
        ("{run}/checkpoints/step-000000007/manifest.json", 7),
        ("file://{run}", 12),
        ("file://{run}/", 12),
        ("file://{run}/checkpoints/step-000000007", 7),
        ("file://{run}/checkpoints/step-000000007/manifest.json", 7),
        ("local://{run}", 12),
    ],
)
def test_a_checkpoint_is_found_by_any_name(run_dir: Path, form: str, step: int) -> None:
    """A run's folder, its checkpoints, one of them or its manifest, as path or URL, all lead to it."""
    found = checkpoints.find(form.format(run=run_dir))
    assert found.global_step == step
    assert _contents(found) == FILES
    assert checkpoints.find(found.address).global_step == step


def test_a_path_object_and_a_relative_path_lead_there(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths work as objects and relative to the working folder."""
    assert checkpoints.find(run_dir).global_step == 12
    monkeypatch.chdir(run_dir.parent)
    assert checkpoints.find(run_dir.name).global_step == 12
    monkeypatch.chdir(run_dir / "checkpoints")
    for reference in ("step-000000007", "./step-000000007/manifest.json"):
        assert checkpoints.find(reference).global_step == 7
    assert checkpoints.find(".").global_step == 12


def test_from_inside_its_folder_a_checkpoint_is_found(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``.`` and ``manifest.json`` mean the checkpoint whose folder one stands in."""
    monkeypatch.chdir(run_dir / "checkpoints" / "step-000000007")
    assert checkpoints.find(".").global_step == 7
    assert checkpoints.find("manifest.json").global_step == 7


def test_a_checkpoint_in_memory_is_found_by_any_name(tmp_path: Path) -> None:
    """An uploaded checkpoint is found by its run's URL, by its own and by its address."""
    url = f"memory://{tmp_path.name}/bucket"
    made = checkpoints.upload(_commit(tmp_path, 7), checkpoints.remote_store(url, {}, "run-a"))
    for reference in (
        f"{url}/run-a",
        f"{url}/run-a/",
        f"{url}/run-a/checkpoints/step-000000007",
        f"{url}/run-a/checkpoints/step-000000007/manifest.json",
        made.address,
    ):
        assert _contents(checkpoints.find(reference)) == FILES


@pytest.mark.parametrize(
    "reference",
    ["nowhere", "file://{here}/nowhere", "memory://nowhere/at/all", "{here}/a file", "{here}",
     "{here}/a file/step-000000001", "checkpoints/step-000000001", "{here}/empty/step-000000001"],
)  # fmt: skip
def test_nothing_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str) -> None:
    """Where there is no checkpoint, one line says what was looked for and what can be given."""
    (tmp_path / "a file").write_bytes(b"")
    (tmp_path / "empty" / "step-000000001").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    reference = reference.format(here=tmp_path)
    with pytest.raises(CheckpointMissing) as caught:
        checkpoints.find(reference)
    text = str(caught.value)
    assert "\n" not in text
    assert reference.removeprefix("file://").removeprefix("memory://").rstrip("/") in text
    assert "Give a run folder" in text


# ---------------------------------------------------------------- damaged or hostile


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(b"x" + file.read_bytes()[1:]),
        lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
    ids=["first byte", "last byte", "cut", "longer", "empty", "gone"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """One wrong byte, one byte less or more, or no file: reading it raises and names the file."""
    made = _commit(tmp_path)
    harm(Path(made.address) / "model.zip")
    found = checkpoints.find(tmp_path)
    with pytest.raises(CheckpointDamaged, match=r"model\.zip") as caught:
        found.read("model.zip")
    assert "\n" not in str(caught.value)
    assert found.read("vecnormalize.npz") == FILES["vecnormalize.npz"]


def test_a_folder_in_a_file_s_place_is_refused(tmp_path: Path) -> None:
    """A folder where the manifest promises a file is damage, not a bare IsADirectoryError."""
    target = Path(_commit(tmp_path).address) / "model.zip"
    target.unlink()
    target.mkdir()
    with pytest.raises(CheckpointDamaged):
        checkpoints.find(tmp_path).read("model.zip")


def test_a_file_the_manifest_does_not_name_is_not_read(tmp_path: Path) -> None:
    """What lies in the folder unvouched for is as good as absent."""
    made = _commit(tmp_path)
    (Path(made.address) / "stranger.bin").write_bytes(b"x")
    with pytest.raises(CheckpointMissing, match=r"stranger\.bin"):
        checkpoints.find(tmp_path).read("stranger.bin")


HASH = "0" * 64
ENTRY = {"size": 1, "sha256": HASH}


@pytest.mark.parametrize(
    "text",
    [
        *(
            json.dumps({"format": 1, "global_step": 7, "files": {name: ENTRY}})
            for name in ("../x", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\nb", "x\n",
                         "a" * 200, "C:x", "~root", "ü")
        ),
        "",
        "not json",
        "[]",
        "null",
        "7",
        '"files"',
        "{}",
        b"\xff\xfe\x00".decode("latin-1"),
        "[" * 100_000,
        json.dumps({"global_step": 7}),
        json.dumps({"global_step": "7", "files": {}}),
        json.dumps({"global_step": 7.0, "files": {}}),
        json.dumps({"global_step": None, "files": {}}),
        json.dumps({"global_step": 7, "files": None}),
        json.dumps({"global_step": 7, "files": ["model.zip"]}),
        json.dumps({"global_step": 7, "files": {"model.zip": None}}),
        json.dumps({"global_step": 7, "files": {"model.zip": {"size": 1}}}),
        json.dumps({"global_step": 7, "files": {"model.zip": {"size": "1", "sha256": HASH}}}),
        json.dumps({"global_step": 7, "files": {"model.zip": {"size": 1, "sha256": 5}}}),
        *(
            json.dumps({"format": 1, "global_step": 7, "files": {}, "shared": shared})
            for shared in ({"../../x": ENTRY}, {"/etc/passwd": ENTRY}, {"a": None}, ["a"], 7)
        ),
        json.dumps({"format": 2, "global_step": 7, "files": {}}),
        json.dumps({"format": "2", "global_step": 7, "files": {}}),
        json.dumps({"format": None, "global_step": 7, "files": {}}),
        json.dumps({"format": 1, "global_step": 7, "files": {}, "x": "y" * (5 << 20)}),
    ],
    ids=lambda text: ascii(text)[1:40],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """Names that leave the folder, missing or wrong types, other formats, bombs: one line, no traceback."""
    made = _commit(tmp_path, 7)
    _commit(tmp_path, 3)
    _manifest(made).write_bytes(text.encode("latin-1") if "\xff" in text else text.encode())
    with pytest.raises(CheckpointDamaged) as caught:
        checkpoints.find(made.address)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000
    assert str(_manifest(made)) in str(caught.value)
    assert checkpoints.find(tmp_path).global_step == 3, "the newest readable one"


def test_a_folder_in_the_manifest_s_place_is_refused(tmp_path: Path) -> None:
    """A folder named manifest.json is no manifest, and no reason for a traceback."""
    made = _commit(tmp_path, 7)
    _commit(tmp_path, 3)
    _manifest(made).unlink()
    _manifest(made).mkdir()
    with pytest.raises(CheckpointError):
        checkpoints.find(made.address)
    assert checkpoints.find(tmp_path).global_step == 3


@pytest.mark.parametrize("size", [0, 1, 499, 501, 10**18, -1])
def test_a_size_that_lies_is_refused_unread(tmp_path: Path, size: int) -> None:
    """A manifest that gives another size than the file has is not believed."""
    made = _commit(tmp_path)
    manifest = json.loads(_manifest(made).read_text())
    manifest["files"]["model.zip"]["size"] = size
    _manifest(made).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointDamaged):
        checkpoints.find(made.address).read("model.zip")


def test_a_link_out_of_the_folder_shows_nothing_unvouched(tmp_path: Path) -> None:
    """A symbolic link to another file is refused unless that file is what the manifest promises."""
    made = _commit(tmp_path / "run")
    (tmp_path / "secret").write_bytes(b"s" * 500)
    link = Path(made.address) / "model.zip"
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointDamaged):
        checkpoints.find(made.address).read("model.zip")


# ---------------------------------------------------------------- keeping


def _scored(run_dir: Path, means: dict[int, float | None]) -> None:
    for step, mean in means.items():
        facts = {} if mean is None else {"scores": {"mean": mean}}
        checkpoints.commit(run_dir, step, FILES, facts)


def _steps(run_dir: Path) -> list[int]:
    return [c.global_step for c in checkpoints.list_checkpoints(Store(run_dir / "checkpoints"))]


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [
        (1, 0, [50]),
        (2, 0, [40, 50]),
        (1, 1, [20, 50]),
        (2, 2, [20, 30, 40, 50]),
        (9, 9, [10, 20, 30, 40, 50]),
    ],
)  # fmt: skip
def test_the_last_and_the_best_are_kept(tmp_path: Path, keep_last: int, keep_best: int, kept: list[int]) -> None:
    """Pruning keeps the newest and the best-scored, takes the rest away and says what it took."""
    _scored(tmp_path, {10: 1.0, 20: 9.0, 30: 5.0, 40: None, 50: 2.0})
    gone = checkpoints.prune(tmp_path, checkpoints.Retention(keep_last, keep_best))
    assert _steps(tmp_path) == kept
    assert gone == [f"step-{step:09d}" for step in (10, 20, 30, 40, 50) if step not in kept]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"step-{step:09d}" for step in kept]
    assert checkpoints.prune(tmp_path, checkpoints.Retention(keep_last, keep_best)) == []


def test_of_equally_good_ones_the_newest_is_kept(tmp_path: Path) -> None:
    """A tie for the best goes to the later checkpoint."""
    _scored(tmp_path, {10: 9.0, 20: 9.0, 30: 1.0})
    checkpoints.prune(tmp_path, checkpoints.Retention(1, 1))
    assert _steps(tmp_path) == [20, 30]


def test_a_score_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    """A diverged evaluation (NaN) never displaces the best checkpoint."""
    _scored(tmp_path, {10: 9.0, 20: float("nan"), 30: 1.0, 40: float("nan"), 50: 0.0})
    checkpoints.prune(tmp_path, checkpoints.Retention(1, 1))
    assert _steps(tmp_path) == [10, 50]


# ---------------------------------------------------------------- uploading


class CountingMemory(MemoryFileSystem):
    """A file system of its own in memory that counts what is sent, and fails when told to."""

    protocol = "counting"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's form: one store per class
    pseudo_dirs = [""]  # noqa: RUF012  # likewise
    sent: list[str] = []  # noqa: RUF012  # likewise
    fail_after: int | None = None

    def _send(self, path: str) -> None:
        if path.endswith("/uploading.json"):
            return  # the announcement of what is on its way is neither a file nor the manifest
        if self.fail_after is not None and len(self.sent) >= self.fail_after:
            raise ConnectionResetError("connection reset by peer")
        self.sent.append(path.rsplit("/", 1)[-1])

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> Any:
        """Count, then send."""
        self._send(rpath)
        super().put_file(lpath, rpath, **kwargs)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> Any:
        """Count, then send."""
        self._send(path)
        return super().pipe_file(path, value, **kwargs)


@pytest.fixture
def counting() -> type[CountingMemory]:
    """The counting file system, empty."""
    fsspec.register_implementation("counting", CountingMemory, clobber=True)
    CountingMemory.store.clear()
    CountingMemory.pseudo_dirs[:] = [""]
    CountingMemory.sent.clear()
    CountingMemory.fail_after = None
    return CountingMemory


@pytest.mark.parametrize("scheme", ["path", "file", "memory", "counting"])
def test_an_upload_is_the_same_checkpoint_elsewhere(
    tmp_path: Path, scheme: str, counting: type[CountingMemory]
) -> None:
    """What is uploaded is found there with the same files and the same manifest."""
    url = {
        "path": str(tmp_path / "remote"),
        "file": f"file://{tmp_path}/remote",
        "memory": f"memory://{tmp_path.name}/remote",
        "counting": f"{counting.protocol}://remote",
    }[scheme]
    made = _commit(tmp_path / "run", name="mine")
    sent = checkpoints.upload(made, checkpoints.remote_store(url, {}, "run-a"))
    found = checkpoints.find(f"{url}/run-a")
    for checkpoint in (sent, found):
        assert _contents(checkpoint) == FILES
        assert checkpoint.manifest == made.manifest


def test_a_second_upload_sends_no_file_again(tmp_path: Path, counting: type[CountingMemory]) -> None:
    """Files that have arrived are not sent twice."""
    made = _commit(tmp_path)
    store = checkpoints.remote_store("counting://remote", {}, "run-a")
    checkpoints.upload(made, store)
    assert sorted(counting.sent) == sorted([*FILES, "manifest.json"])
    assert counting.sent[-1] == "manifest.json"
    counting.sent.clear()
    checkpoints.upload(made, store)
    assert set(counting.sent) <= {"manifest.json"}


def test_a_second_upload_to_a_folder_rewrites_no_file(tmp_path: Path) -> None:
    """In a folder, too, what has arrived is left as it is."""
    made = _commit(tmp_path / "run")
    store = checkpoints.remote_store(f"file://{tmp_path}/remote", {}, "run-a")
    folder = Path(checkpoints.upload(made, store).address)
    before = {name: (folder / name).stat().st_ino for name in FILES}
    checkpoints.upload(made, store)
    assert {name: (folder / name).stat().st_ino for name in FILES} == before


@pytest.mark.parametrize("arrived", range(len(FILES) + 1))
def test_an_upload_cut_off_shows_nothing_and_goes_on(
    tmp_path: Path, counting: type[CountingMemory], arrived: int
) -> None:
    """After a failure there is no checkpoint yet; the retry sends only what is missing, manifest last."""
    made = _commit(tmp_path)
    store = checkpoints.remote_store("counting://remote", {}, "run-a")
    counting.fail_after = arrived
    with pytest.raises(ConnectionResetError) as caught:
        checkpoints.upload(made, store)
    assert is_transient(caught.value), "a flow tries this again"
    assert checkpoints.list_checkpoints(store) == []
    with pytest.raises(CheckpointMissing):
        checkpoints.find("counting://remote/run-a")
    counting.fail_after = None
    counting.sent.clear()
    checkpoints.upload(made, store)
    assert counting.sent == [*list(FILES), "manifest.json"][arrived:]
    assert _contents(checkpoints.find("counting://remote/run-a")) == FILES


@pytest.mark.usefixtures("counting")
def test_a_file_cut_off_on_its_way_is_sent_again(tmp_path: Path) -> None:
    """A remote file of the wrong size does not count as arrived."""
    made = _commit(tmp_path)
    store = checkpoints.remote_store("counting://remote", {}, "run-a")
    store.write(f"{made.name}/model.zip", b"half")
    checkpoints.upload(made, store)
    assert _contents(checkpoints.find("counting://remote/run-a")) == FILES


def test_a_step_committed_again_is_uploaded_again(tmp_path: Path, counting: type[CountingMemory]) -> None:
    """Other bytes of the same size replace what an earlier commit of that step had sent."""
    store = checkpoints.remote_store("counting://remote", {}, "run-a")
    for content in (b"first", b"other"):
        made = checkpoints.commit(tmp_path, 7, {"model.zip": content, "z.bin": content}, {})
        checkpoints.upload(made, store)
        found = checkpoints.find("counting://remote/run-a")
        assert _contents(found) == {"model.zip": content, "z.bin": content}
    assert counting.sent.count("model.zip") == 2


@pytest.mark.parametrize("arrived", range(4))
def test_a_replacement_cut_off_is_never_seen_torn(tmp_path: Path, counting: type[CountingMemory], arrived: int) -> None:
    """While a step is uploaded again, a reader finds a whole checkpoint or none."""
    store = checkpoints.remote_store("counting://remote", {}, "run-a")
    checkpoints.upload(checkpoints.commit(tmp_path, 7, {"a.bin": b"1", "b.bin": b"1"}, {}), store)
    again = checkpoints.commit(tmp_path, 7, {"a.bin": b"22", "b.bin": b"22"}, {})
    counting.sent.clear()
    counting.fail_after = arrived
    if arrived < 3:
        with pytest.raises(ConnectionResetError):
            checkpoints.upload(again, store)
    else:
        checkpoints.upload(again, store)
    for checkpoint in checkpoints.list_checkpoints(store):
        assert len(set(_contents(checkpoint).values())) == 1
