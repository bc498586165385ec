"""The flows against a real Prefect API: identity, artifacts, and which failures are retried."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers import record_of, tiny, wandb_config
from prefect import flow, get_client, task
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed

from rl_research.checkpoints import find
from rl_research.config import Experiment, compose_experiment
from rl_research.errors import CheckpointMissing, ConfigError, RLResearchError, StorageError
from rl_research.flows.evaluate import evaluate
from rl_research.flows.train import train
from rl_research.orchestration import RETRY_TRANSIENT, artifacts, call_flow, flow_runs
from rl_research.orchestration.retry_policies import is_transient_failure
from rl_research.runs.run import open_run
from rl_research.training import preflight, stages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


class FlakyFileSystem(MemoryFileSystem):
    """A store in memory whose first writes fail."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012  # as its base class has it
    pseudo_dirs = [""]  # noqa: RUF012
    failures: list[BaseException] = []  # noqa: RUF012
    attempts = 0

    def pipe_file(self, *args: Any, **kwargs: Any) -> Any:
        """Write bytes, unless it is a failure's turn."""
        self._fail()
        return super().pipe_file(*args, **kwargs)

    def put_file(self, *args: Any, **kwargs: Any) -> Any:
        """Copy a file, unless it is a failure's turn."""
        self._fail()
        return super().put_file(*args, **kwargs)

    def _fail(self) -> None:
        type(self).attempts += 1
        if self.failures:
            raise self.failures.pop(0)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


@pytest.fixture
def flaky() -> Iterator[type[FlakyFileSystem]]:
    """The flaky store, empty and with no failure planned."""
    FlakyFileSystem.store.clear()
    FlakyFileSystem.failures.clear()
    FlakyFileSystem.attempts = 0
    yield FlakyFileSystem
    FlakyFileSystem.failures.clear()


def _task_runs(flow_run_id: str) -> dict[str, Any]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while True:  # task runs reach the database by way of events
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)])))
            done = len(runs) >= 4 and all(run.state and run.state.is_final() for run in runs)
            if done or time.monotonic() > deadline:
                return {run.task_key.rpartition(".")[2].split("-")[0]: run for run in runs}
            time.sleep(0.2)


def _artifacts(flow_run_id: str) -> list[Any]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(limit=200)
    return [artifact for artifact in found if str(artifact.flow_run_id) == flow_run_id]


# ---------------------------------------------------------------- identity


@pytest.fixture(scope="module")
def result(prefect_api: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a flow without a given run_id returned."""
    del prefect_api
    runs_dir = tmp_path_factory.mktemp("flow")
    return train(tiny(runs_dir, None, "video.enabled=true"))


def test_a_flow_run_names_the_run(result: dict[str, Any]) -> None:
    """The run_id is derived from the flow run's id, and names the folder and the W&B run, too."""
    tail = result["flow_run_id"].replace("-", "")[-10:]
    assert result["run_id"].endswith(tail)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", result["run_id"])
    assert Path(result["run_dir"]).name == result["run_id"]
    assert result["wandb"]["id"] == result["run_id"]
    assert result["status"] == "finished"


def test_the_flow_run_stands_everywhere(result: dict[str, Any]) -> None:
    """Record, manifest and W&B configuration name the flow run."""
    run_dir = Path(result["run_dir"])
    assert record_of(run_dir)["flow_run_id"] == result["flow_run_id"]
    manifest = json.loads(Path(result["checkpoint"], "manifest.json").read_text())
    assert manifest["flow_run_id"] == result["flow_run_id"]
    assert manifest["wandb_run_id"] == result["run_id"]
    assert wandb_config(run_dir)["prefect"]["flow_run_id"] == result["flow_run_id"]


def test_artifacts_show_the_run(result: dict[str, Any]) -> None:
    """The flow run has a link to the W&B run, a summary with the scores, and a progress that reached 100."""
    found = _artifacts(result["flow_run_id"])
    by_kind = {artifact.key.split("-")[0]: artifact for artifact in found}
    assert by_kind.keys() >= {"wandb", "summary", "progress"}
    assert result["run_id"] in str(by_kind["wandb"].data)
    assert result["wandb"]["dir"] in str(by_kind["wandb"].data)
    assert f"{result['scores']['mean']:.1f}" in str(by_kind["summary"].data)
    assert float(by_kind["progress"].data) == 100.0


def test_a_flow_run_leads_to_its_run(result: dict[str, Any]) -> None:
    """Its name and tags say algorithm, environment, seed and mode; its labels lead to folder and page."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(result["flow_run_id"]))
    assert found.name.startswith("PPO CartPole-v1 seed 0 offline: ")
    assert {"PPO", "CartPole-v1", "seed-0", "offline"} <= set(found.tags)
    assert found.labels["run_id"] == result["run_id"]
    assert Path(str(found.labels["report"])).exists()
    assert Path(str(found.labels["wandb"])).exists()


def test_the_summary_tells_what_it_took(result: dict[str, Any]) -> None:
    """The summary has the curve as a picture, the interval of the score, and the cost."""
    (summary,) = (a for a in _artifacts(result["flow_run_id"]) if a.key.startswith("summary-"))
    for part in ("data:image/png;base64", "95 % interval", "CPU seconds", "steps/s", "checkpoints"):
        assert part in str(summary.data)


def test_every_flow_run_of_a_run_is_kept(tmp_path: Path) -> None:
    """A run that two flow runs have worked on names both, in its record and at W&B, and how it went on."""
    words = tiny(tmp_path, "twice", "experiment.total_timesteps=64")
    first = train(words)["flow_run_id"]
    second = train([*words, "experiment.total_timesteps=128"])["flow_run_id"]
    record = record_of(tmp_path / "twice")
    assert record["flow_run_ids"] == [first, second]
    assert wandb_config(tmp_path / "twice")["flow_run_ids"] == [first, second]
    (_, later) = record["segments"]
    assert (later["after"], later["from_step"]) == ("finished", 64)
    assert later["away_seconds"] >= 0
    (summary,) = (a for a in _artifacts(second) if a.key.startswith("summary-"))
    assert "Segment 2: finished, goes on from step 64" in str(summary.data)


def test_task_runs_have_names(result: dict[str, Any]) -> None:
    """Each stage is a task run of its own, with a telling name, run once, and without a tag.

    Prefect asks the API before each task with a tag, and fails it where the API is away.
    """
    runs = _task_runs(result["flow_run_id"])
    stages_run = ("train_policy", "score_policy", "film_policy", "report_run")
    assert runs.keys() >= set(stages_run)
    for name in stages_run:
        assert runs[name].state.is_completed()
        assert runs[name].run_count == 1
        assert not runs[name].tags
        assert "{" not in runs[name].name
    assert "upload_checkpoint" not in runs, "there is no storage.url"


def test_a_flow_run_is_named_after_its_words(tmp_path: Path) -> None:
    """A flow run's name is its command, without options of the store."""
    from prefect.client.schemas.sorting import FlowRunSort

    secret = "storage.options.secret=hunter2"
    words = tiny(tmp_path, "named", secret, "storage.url=memory://named", "wandb=disabled")
    with pytest.raises((RLResearchError, TypeError)):
        train([*words, "experiment.sed=1"])
    with get_client(sync_client=True) as client:
        newest_first = FlowRunSort.EXPECTED_START_TIME_DESC
        names = [run.name for run in client.read_flow_runs(sort=newest_first)]
    assert any("run_id=named" in name for name in names)
    assert not any("hunter2" in name for name in names)


def test_a_retried_flow_run_meets_its_own_checkpoint(tmp_path: Path, flaky: type[FlakyFileSystem]) -> None:
    """Retried by Prefect, a flow run keeps its run_id and trains nothing again."""
    flaky.failures[:] = [PermissionError(13, "not yet")]
    retried = train.with_options(retries=1, retry_delay_seconds=0)
    seen: list[float] = []

    def times() -> list[float]:
        return [p.stat().st_mtime_ns for p in tmp_path.glob("*/checkpoints/step-*96/model.zip")]

    put = flaky._fail

    def watched(self: FlakyFileSystem) -> None:
        seen.extend(times())
        put(self)

    flaky._fail = watched  # type: ignore[method-assign]
    try:
        done = retried(tiny(tmp_path, None, "storage.url=flaky://retried", "checkpoint.every=0", "wandb=disabled"))
    finally:
        flaky._fail = put  # type: ignore[method-assign]
    assert done["status"] == "finished"
    assert [path.name for path in tmp_path.iterdir()] == [done["run_id"]]
    assert len(set(seen)) == 1, "the checkpoint of the first try was trained again"
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(UUID(done["flow_run_id"])).run_count == 2


def test_a_flow_run_composes_its_experiment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name and body share one composition; what a command has composed and prepared is used by its flow."""
    composed: list[object] = []

    def compose(overrides: Sequence[str]) -> Experiment:
        composed.append(overrides)
        return compose_experiment(overrides)

    monkeypatch.setattr(flow_runs, "compose_experiment", compose)
    train(tiny(tmp_path, "alone", "wandb=disabled"))
    assert len(composed) == 1
    experiment = compose_experiment(tiny(tmp_path, "called", "wandb=disabled"))
    with preflight(experiment.config) as prepared:
        done = call_flow(train, (experiment.overrides,), None, str, experiment, prepared)
        assert prepared.take(experiment.config) is None, "training has built an algorithm of its own"
    assert len(composed) == 1
    assert done["run_id"] == "called"
    assert done["parameters_sha256"] == record_of(tmp_path / "alone")["parameters_sha256"]


# ---------------------------------------------------------------- stores


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_every_kind_of_store_ends_with_a_manifest(tmp_path: Path, kind: str) -> None:
    """A plain path, file:// and memory://: the checkpoint is there, whole, and can be scored there."""
    place = tmp_path / "a store"
    url = {"path": str(place), "file": place.as_uri(), "memory": "memory://a/store"}[kind]
    done = train(tiny(tmp_path / "runs", "mine", f"storage.url='{url}'", "wandb=disabled"))
    checkpoint = find(done["checkpoint"])
    checkpoint.verify()
    assert checkpoint.global_step == 96
    assert not str(done["checkpoint"]).startswith(str(tmp_path / "runs"))
    scored = evaluate(done["checkpoint"])
    assert scored["scores"] == done["scores"]
    assert scored["parameters_sha256"] == done["parameters_sha256"]
    assert scored["run_id"] == "mine"
    assert evaluate(f"{url}/mine", 2)["scores"]["episodes"] == 2


def test_evaluate_of_nothing_fails_at_once(tmp_path: Path) -> None:
    """Nothing there is not a connection failure."""
    with pytest.raises(CheckpointMissing):
        evaluate(str(tmp_path / "nothing"))


# ---------------------------------------------------------------- which failures are retried


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (ConnectionResetError(104, "reset"), True),
        (TimeoutError("slow"), True),
        (OSError(110, "timed out"), True),
        (_caused(RuntimeError("upload"), ConnectionRefusedError(111, "refused")), True),
        (PermissionError(13, "denied"), False),
        (FileNotFoundError(2, "gone"), False),
        (OSError(28, "no space"), False),
        (ConfigError("wrong"), False),
        (StorageError("refused"), False),
        (ValueError("a bug"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_only_connection_failures_are_retried(error: BaseException, retried: bool) -> None:
    """`retry_condition_fn` says yes to what waiting may mend and to nothing else."""
    some: Any = stages  # neither task nor task run is looked at
    assert is_transient_failure(some, some, Failed(data=error)) is retried


def test_a_state_without_an_error_is_not_retried() -> None:
    """Where a state carries no exception there is nothing to judge."""
    some: Any = stages
    for state in (Failed(data=None), Failed(data="text"), Completed(data=3)):
        assert is_transient_failure(some, some, state) is False


@pytest.mark.parametrize(("error", "tries"), [(ConnectionResetError, 3), (ValueError, 1)])
def test_prefect_obeys_the_condition(error: type[Exception], tries: int) -> None:
    """A task with these retries runs again after a lost connection, and not after a bug."""
    count = 0

    @task(**{**RETRY_TRANSIENT, "retry_delay_seconds": 0, "retries": 2})
    def fails() -> None:
        nonlocal count
        count += 1
        raise error("again")

    @flow
    def once() -> None:
        fails()

    with pytest.raises(error):
        once()
    assert count == tries


# ---------------------------------------------------------------- an API that is not there


@pytest.fixture
def dead_api() -> Iterator[None]:
    """A Prefect API at an address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        yield


@pytest.fixture
def in_run(tmp_path: Path) -> Iterator[Any]:
    """An open run."""
    overrides = tiny(tmp_path, "dark", "wandb=disabled")
    with open_run(compose_experiment(overrides)) as run:
        yield run


@pytest.mark.usefixtures("dead_api")
def test_training_goes_on_without_the_api(in_run: Any) -> None:
    """Progress that nobody takes neither stops nor delays training."""
    began = time.monotonic()
    with artifacts.Progress(in_run) as progress:
        checkpoint = stages.train_run(in_run, progress.set)
    assert checkpoint.global_step == 96
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("dead_api")
@pytest.mark.parametrize("publish", [artifacts.publish_wandb_link, artifacts.publish_summary])
def test_publishing_fails_softly(in_run: Any, publish: Callable[[Any], None], caplog: pytest.LogCaptureFixture) -> None:
    """Links and summaries that the API does not take cost a line in the log."""
    in_run.save(wandb={"dir": "somewhere", "path": "p/r", "mode": "offline"})
    in_run.save(status="finished")
    publish(in_run)
    told = [line for line in caplog.messages if line.startswith("Prefect did not take")]
    assert len(told) == 1
    assert len(told[0].splitlines()) == 1
