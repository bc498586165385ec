"""A checkpoint is meant by run, best, latest or step, and what is meant is said."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from helpers import Call, tiny, upload
from servers import Server

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import compose_experiment
from rl_research.errors import CheckpointDamaged, CheckpointMissing
from rl_research.runs.run import open_run
from rl_research.storage.store import Store
from rl_research.training import stages


def _run(folder: Path, means: Mapping[int, float | None], *, at: float = 1000.0) -> Path:
    """A run folder with a record written at *at* and a checkpoint of each step and mean."""
    for step, mean in means.items():
        scores = None if mean is None else {"mean": mean, "std": 1.0, "episodes": 2}
        facts = {"scores": scores, "run_id": folder.name, "created_at": "2026-01-01T00:00:00+00:00"}
        checkpoints.commit(folder, step, {"model.zip": b"m" * step}, facts)
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text("{}")
    os.utime(folder / "run.json", (at, at))
    return folder


def _described(folder: Path, url: str) -> None:
    (folder / "config.yaml").write_text(json.dumps({"storage": {"url": url}}))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``runs``: an older run and the one trained last."""
    _run(tmp_path / "runs" / "older", {10: 1.0, 20: 9.0, 30: 2.0}, at=1000)
    _run(tmp_path / "runs" / "newer", {64: 5.0, 128: 3.0}, at=2000)
    _run(tmp_path / "runs" / "newer.replaced-1", {7: 99.0}, at=3000)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


# ---------------------------------------------------------------- the grammar


@pytest.mark.parametrize(
    ("reference", "run", "step"),
    [
        ("older", "older", 30),
        ("older@latest", "older", 30),
        ("older@best", "older", 20),
        ("older/best", "older", 20),
        ("older@step-10", "older", 10),
        ("older@step-000000010", "older", 10),
        ("older/step-10", "older", 10),
        ("runs/older", "older", 30),
        ("runs/older@best", "older", 20),
        ("runs/older/best", "older", 20),
        ("runs/older/checkpoints@best", "older", 20),
        ("runs/older/step-000000020", "older", 20),
        ("./runs/older/step-20", "older", 20),
        ("{runs}/older@step-20", "older", 20),
        ("file://{runs}/older@best", "older", 20),
        ("latest", "newer", 128),
        ("best", "newer", 64),
        ("step-64", "newer", 64),
    ],
)
def test_a_reference_means_one_checkpoint(runs: Path, reference: str, run: str, step: int) -> None:
    """Every form leads to the checkpoint it names; alone, a choice is of the run trained last."""
    found = checkpoints.find(reference.format(runs=runs))
    assert (found.manifest.run_id, found.global_step) == (run, step)


def test_where_one_stands_comes_before_the_run_trained_last(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run's folder, ``best`` is that run's."""
    monkeypatch.chdir(runs / "older")
    assert checkpoints.find("best").global_step == 20


def test_runs_may_be_named_like_choices_and_lie_below_difficult_names(tmp_path: Path) -> None:
    """A run called ``best`` is found by its path, and spaces, @ and Unicode in a path do no harm."""
    folder = tmp_path / "me@home" / "größe 1"
    _run(folder / "best", {5: None, 6: None})
    assert checkpoints.find(folder / "best").global_step == 6
    assert checkpoints.find(f"{folder}/best@step-5").global_step == 5
    assert checkpoints.find("best@step-5", runs_dir=folder).global_step == 5


def test_a_run_id_is_looked_for_in_the_store_too(runs: Path) -> None:
    """With a URL, the newest of the run folder and the store is meant; a run may lie in either alone."""
    url = f"memory://{runs.parent.name}/store"
    for step in (20, 40):
        made = checkpoints.commit(runs / "spare", step, {"model.zip": b"x"}, {"run_id": "older"})
        checkpoints.upload(made, checkpoints.remote_store(url, {}, "older"))
        checkpoints.upload(made, checkpoints.remote_store(url, {}, "away"))
    assert checkpoints.find("older").global_step == 30
    assert checkpoints.find("older", url=url).address.startswith("memory://")
    assert checkpoints.find("older@step-20", url=url).store.is_local, "of two alike the local one"
    assert checkpoints.find("away@step-20", url=url).global_step == 20
    with pytest.raises(CheckpointMissing, match="nor a run of that name in runs or below memory"):
        checkpoints.find("nobody", url=url)


def test_a_run_folder_without_checkpoints_leads_to_its_store(runs: Path) -> None:
    """Where the local checkpoints are gone, the storage that the run itself names is used."""
    url = str(runs.parent / "a store")
    for checkpoint in checkpoints.local_checkpoints(runs / "older"):
        checkpoints.upload(checkpoint, checkpoints.remote_store(url, {}, "older"))
    _described(runs / "older", url)
    shutil.rmtree(runs / "older" / "checkpoints")
    for reference in ("older@best", "runs/older@best"):
        assert checkpoints.find(reference).address == f"{url}/older/checkpoints/step-000000020"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("oldr", "Did you mean 'older'?"),
        ("runs/oldr", "Did you mean 'older'?"),
        ("older@bset", "Did you mean 'best'?"),
        ("older@step-21", "there are 10, 20, 30. Did you mean 'step-20'?"),
        ("nothing-like-it", "nor a run of that name in runs"),
        ("memory://nowhere/run@best", "no checkpoint there"),
    ],
)
@pytest.mark.usefixtures("runs")
def test_what_is_not_there_is_one_line_with_a_suggestion(call: Call, reference: str, said: str) -> None:
    """An unknown run, choice or step is a mistake that names what there is."""
    code, out, err = call("checkpoints", "get", reference)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_without_scores_nothing_is_the_best(tmp_path: Path) -> None:
    """Where no checkpoint has a score, ``best`` is refused; a score that is no number is none."""
    run = _run(tmp_path / "run", {10: None, 20: float("nan")})
    with pytest.raises(CheckpointMissing, match="none is the best"):
        checkpoints.find(f"{run}@best")


def test_without_any_run_alone_standing_choices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``best`` where there is no run says so."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointMissing, match=r"^best: no checkpoint there"):
        checkpoints.find("best")


def test_what_is_meant_is_said(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A choice or a run_id is answered with the checkpoint it came to; a plain path is not repeated."""
    caplog.set_level(logging.INFO)
    found = checkpoints.find("best")
    assert f"best is {found.address}" in caplog.text
    caplog.clear()
    checkpoints.find(found.address)
    assert caplog.text == ""
    assert found.address == f"{runs}/newer/checkpoints/step-000000064"


# ---------------------------------------------------------------- what is passed over


@pytest.mark.parametrize("harm", ["gone", "garbage"])
def test_a_newest_folder_that_is_no_checkpoint_is_passed_over_aloud(
    runs: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    """One warning line names the folder, what it lacks and what is used instead; older ones are silent."""
    manifests = [runs / "older" / f"checkpoints/step-{step:09d}/manifest.json" for step in (10, 30)]
    for manifest in manifests:
        manifest.unlink() if harm == "gone" else manifest.write_text("{")
    assert checkpoints.find("older@latest").global_step == 20
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "step-000000030" in line
    assert ("it has no manifest.json" if harm == "gone" else "is no manifest") in line
    assert line.endswith("step 20 is used")


def test_only_damaged_folders_are_named(tmp_path: Path) -> None:
    """Where no checkpoint is whole, the error says what the newest folder lacks."""
    run = _run(tmp_path / "run", {10: 1.0})
    (run / "checkpoints/step-000000010/manifest.json").write_text("{")
    with pytest.raises(CheckpointDamaged, match=r"step-000000010.* is no manifest"):
        checkpoints.find(run)


def test_a_resumed_run_says_what_it_passes_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose newest folder has lost its manifest says so in a line and goes on from the one before."""
    words = tiny(tmp_path, "mine", "wandb=disabled", "evaluation.enabled=false")
    with open_run(compose_experiment([*words, "experiment.total_timesteps=64"])) as run:
        stages.train_run(run)
    (run.dir / "checkpoints/step-000000064/manifest.json").unlink()
    with open_run(compose_experiment(words)) as run:
        assert stages.train_run(run).global_step == 96
    said = [r.getMessage() for r in caplog.records if "step-000000064" in r.getMessage()]
    assert [line for line in said if line.endswith("step 32 is used")]
    assert len(said) == 1


# ---------------------------------------------------------------- the verb


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished SAC run below a difficult name, and its copy in a store beside it."""
    base = tmp_path_factory.mktemp("my rüns")
    words = tiny(base, "sac", "wandb=disabled", "algorithm=sac", "env=pendulum", f"storage.url='{base}/störe'")
    with open_run(compose_experiment(words)) as run:
        checkpoint = stages.train_run(run)
        stages.score_checkpoint(run, checkpoint)
        for each in checkpoints.local_checkpoints(run.dir):
            upload(run, each)
    return run.dir


def test_a_run_s_checkpoints_are_a_table(trained: Path, call: Call) -> None:
    """The table has a line per checkpoint, aligned, with score, size and age, and marks best and latest."""
    code, out, _ = call("checkpoints", str(trained))
    place, head, *lines = out.splitlines()
    assert (code, place) == (0, f"{trained}/checkpoints")
    assert head.split() == ["step", "score", "final", "score", "size", "age", "valid"]
    assert [line.split()[0] for line in lines] == ["32", "64", "96"]
    column = head.index("valid")
    assert {line[column : column + 3] for line in lines} == {"yes"}
    assert sum("best" in line for line in lines) == 1
    assert lines[-1].endswith(("latest", "latest, best"))


def test_the_listing_in_json_is_complete(trained: Path, call: Call) -> None:
    """``--json`` holds step, scores, bytes with the shared replay segments, age and validity of each."""
    words = ("checkpoints", "list", "sac", "--runs-dir", str(trained.parent), "--verify", "--json")
    code, out, _ = call(*words)
    (place,) = json.loads(out)["places"]
    rows = place["checkpoints"]
    assert code == 0
    assert [row["global_step"] for row in rows] == [32, 64, 96]
    assert [row["valid"] for row in rows] == [True] * 3
    newest = checkpoints.find(trained)
    assert rows[-1]["bytes"] == sum(size for size, _ in newest.paths().values())
    assert rows[-1]["final_scores"]["episodes"] == 4
    assert 0 <= rows[-1]["age"] < 3600


def test_a_listing_says_what_is_damaged(trained: Path, tmp_path: Path, call: Call) -> None:
    """A missing file shows at once, a flipped byte with ``--verify``, a lost manifest as no checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    first, second, third = sorted((run / "checkpoints").glob("step-*"))
    data = bytearray((first / "model.zip").read_bytes())
    data[50] ^= 1
    (first / "model.zip").write_bytes(data)
    (second / "model.zip").unlink()
    (third / "manifest.json").unlink()
    problems = {}
    for words in ((), ("--verify",)):
        code, out, _ = call("checkpoints", str(run), "--json", *words)
        assert code == 0
        problems[words] = [r["problem"] for r in json.loads(out)["places"][0]["checkpoints"]]
    assert problems[()][0] is None
    assert "SHA-256" in problems[("--verify",)][0]
    for _, missing, lost in problems.values():
        assert "model.zip: no bytes" in missing
        assert "no manifest.json" in lost


def test_the_listing_of_a_store(trained: Path, call: Call) -> None:
    """The same works on a URL, and on a run_id with ``storage.url``, where both places are shown."""
    url = f"{trained.parent}/störe"
    _, out, _ = call("checkpoints", f"file://{url}/sac", "--json")
    (place,) = json.loads(out)["places"]
    assert [row["global_step"] for row in place["checkpoints"]] == [32, 64, 96]
    options = ("--runs-dir", str(trained.parent), "--json")
    _, out, _ = call("checkpoints", "sac", f"storage.url='{url}'", *options)
    assert [place["place"] for place in json.loads(out)["places"]] == [
        f"{trained}/checkpoints", f"{url}/sac/checkpoints",
    ]  # fmt: skip


def test_a_checkpoint_is_got_whole(trained: Path, tmp_path: Path, call: Call) -> None:
    """``get`` copies one checkpoint with its segments, verified, into a folder that every verb takes."""
    target = tmp_path / "mine ü"
    store = f"file://{trained.parent}/störe/sac"
    code, out, _ = call("checkpoints", "get", f"{store}@step-64", str(target))
    assert (code, out) == (0, f"{target}/checkpoints/step-000000064\n")
    got, source = checkpoints.find(target), checkpoints.find(f"{store}@step-64")
    got.verify()
    assert got.manifest == source.manifest
    assert [c.global_step for c in checkpoints.local_checkpoints(target)] == [64]
    assert call("verify", str(target))[0] == 0


def test_without_a_target_a_checkpoint_goes_to_its_run_s_folder(trained: Path, tmp_path: Path, call: Call) -> None:
    """The default target is where ``train`` and ``evaluate`` look for that run."""
    store = f"storage.url='{trained.parent}/störe'"
    code, out, _ = call("checkpoints", "get", "sac@best", store, "--runs-dir", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out)["checkpoint"].startswith(f"{tmp_path}/sac/checkpoints/step-")
    assert checkpoints.find("sac", runs_dir=tmp_path).manifest.run_id == "sac"


def test_get_waits_for_no_one_who_has_the_target_open(trained: Path, tmp_path: Path, call: Call) -> None:
    """A target that is an open run is refused, because that run prunes there."""
    words = tiny(tmp_path, "open", "wandb=disabled")
    with open_run(compose_experiment(words)) as run:
        code, out, err = call("checkpoints", "get", str(trained), str(run.dir))
    assert (code, out) == (2, "")
    assert "has this run open" in err


def test_a_download_cut_off_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second try asks for what is missing only; a spoilt beginning is fetched anew."""
    data = os.urandom(3 << 20)
    made = checkpoints.commit(tmp_path / "run", 5, {"model.zip": data}, {})
    name = f".model.zip.{made.files['model.zip'][1][:12]}.tmp"
    left = tmp_path / "target" / "checkpoints" / made.name / name
    asked: list[int] = []
    honest = Store.pieces

    def pieces(store: Store, path: str, size: int, first: int = 0) -> Iterator[bytes]:
        asked.append(first)
        return honest(store, path, size, first)

    monkeypatch.setattr(Store, "pieces", pieces)
    for beginning in (data[: 2 << 20], b"x" * (2 << 20)):
        left.parent.mkdir(parents=True)
        left.write_bytes(beginning)
        told: list[int] = []
        got = checkpoints.download(made, tmp_path / "target", told.append)
        assert asked.pop(0) == 2 << 20
        assert got.read("model.zip") == data
        assert sum(told) == len(data)
        assert sorted(p.name for p in left.parent.iterdir()) == ["manifest.json", "model.zip"]
        shutil.rmtree(tmp_path / "target")
        asked.clear()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("get",), "get takes REF [TARGET]"),
        (("get", "a", "b", "c"), "get takes REF [TARGET]"),
        (("list", "a", "b"), "list takes one RUN"),
        (("older", "seed=3"), "list takes one RUN"),
        (("older", "--verfy"), "Did you mean '--verify'?"),
    ],
)
@pytest.mark.usefixtures("runs")
def test_a_mistaken_command_is_one_line(call: Call, words: tuple[str, ...], said: str) -> None:
    """Too many words, too few, and unknown options are said in a line."""
    code, out, err = call("checkpoints", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("runs")
def test_where_options_stand_does_not_matter(call: Call) -> None:
    """Options may stand before, between and after the words."""
    first = call("checkpoints", "--json", "list", "older")[1]
    assert json.loads(first)["places"][0]["checkpoints"][0]["global_step"] == 10
    assert call("checkpoints", "list", "--json", "older")[1][:200] == first[:200]
    assert call("checkpoints", "older", "--json")[1][:200] == first[:200]


# ---------------------------------------------------------------- real servers


@pytest.mark.parametrize("kind", ["s3", "gcs", "sftp"])
def test_references_work_on_real_servers(request: pytest.FixtureRequest, kind: str, tmp_path: Path, call: Call) -> None:
    """On S3, GCS and SFTP a run is listed, its best is found, got whole, and a wrong step is told."""
    server: Server = request.getfixturevalue(kind)
    server.bucket("refs")
    run = _run(tmp_path / "run-a", {10: 9.0, 20: 1.0})
    url, options = server.url("refs/my prefix"), server.options
    for checkpoint in checkpoints.local_checkpoints(run):
        checkpoints.upload(checkpoint, checkpoints.remote_store(url, options, "run-a"))
    words = [f"storage.options.{key}='{value}'" for key, value in options.items()]
    _, out, _ = call("checkpoints", f"{url}/run-a", *words, "--json", "--verify")
    rows = json.loads(out)["places"][0]["checkpoints"]
    assert [(row["global_step"], row["valid"]) for row in rows] == [(10, True), (20, True)]
    assert call("checkpoints", "get", f"{url}/run-a@best", str(tmp_path / "got"), *words)[0] == 0
    got: Checkpoint = checkpoints.find(tmp_path / "got")
    assert (got.global_step, got.read("model.zip")) == (10, b"m" * 10)
    code, _, err = call("checkpoints", "get", f"{url}/run-a@step-11", *words)
    assert code == 2
    assert "Did you mean 'step-10'?" in err


def test_entries_tell_size_and_time_of_every_file(tmp_path: Path) -> None:
    """A store lists files at any depth by name, hidden ones too, and follows no link to a folder."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / ".x").write_bytes(b"123")
    (tmp_path / "top ü").write_bytes(b"")
    os.utime(tmp_path / "top ü", (5, 5))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = Store(tmp_path).entries()
    assert {name: entry.size for name, entry in found.items()} == {"a/b/.x": 3, "top ü": 0}
    assert found["top ü"].modified == 5.0
    assert Store(tmp_path / "nowhere").entries() == {}
