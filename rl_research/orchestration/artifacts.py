"""A run in Prefect's pages: links, tables, a summary, and how far it is.

Nothing here can fail or delay a run: an API that does not answer costs a line in the log.
"""

import contextvars
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

from rl_research.checkpoints import FOLDER, Checkpoint
from rl_research.orchestration.api_client import best_effort
from rl_research.orchestration.flow_runs import experiment_facts
from rl_research.pruning import Pruned
from rl_research.report import study_markdown, summary_markdown
from rl_research.runs import Run
from rl_research.storage import below
from rl_research.sync import Outcome
from rl_research.system import shown_size, without_password
from rl_research.uploads import checkpoint_facts

_INTERVAL = 5.0  # seconds between two reports of progress
_ROWS = 1000  # of a table
_RETRIES = 3  # of a request for which nobody waits
Row = dict[str, object]


def _start_thread(target: Callable[..., object], *args: object) -> threading.Thread:
    """Start a thread in a copy of this context, so that what it publishes belongs to this flow run."""
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(target, *args), daemon=True)
    thread.start()
    return thread


@contextmanager
def linked_to_flow_run(run: Run) -> Iterator[None]:
    """Let the flow run and *run* lead to each other, in a thread beside the block."""
    threads = [_start_thread(label_flow_run, run), _start_thread(publish_wandb_link, run)]
    try:
        yield
    finally:
        for thread in threads:
            thread.join(timeout=_INTERVAL)


def label_flow_run(run: Run) -> None:
    """Give the flow run tags to filter by, and labels that lead to the run, its W&B run and its page."""
    if run.record.flow_run_id is None:
        return
    config, wandb, flow_run_id = run.config, run.record.wandb, UUID(run.record.flow_run_id)
    labels: dict[str, bool | int | float | str] = {
        "run_id": str(config.run_id),
        "run_dir": str(run.dir.absolute()),
        "report": str(run.dir.absolute() / "report.html"),
        "checkpoints": _checkpoints_of(run),
        "wandb": str(wandb.url or wandb.dir or wandb.mode),
    }
    with best_effort("did not take tags and labels", retries=_RETRIES), get_client(sync_client=True) as client:
        before = client.read_flow_run(flow_run_id).tags
        facts = [fact.replace(" ", "-") for fact in experiment_facts(config)]
        client.update_flow_run(flow_run_id, tags=sorted({*before, *facts}))
        client.update_flow_run_labels(flow_run_id, labels)


def _checkpoints_of(run: Run) -> str:
    """Return where they are: in ``storage.url``, shown without its password, else in the run folder."""
    if (url := run.config.storage.url) is None:
        return str(run.dir.absolute() / FOLDER)
    return without_password(below(url, f"{run.config.run_id}/{FOLDER}"))


def publish_wandb_link(run: Run) -> None:
    """Link the flow run to its W&B run; offline, say where it lies, for no page may link to a folder."""
    wandb, run_id = run.record.wandb, run.config.run_id
    if wandb.url is None and wandb.dir is None:
        return
    name = f"W&B run {wandb.path} ({wandb.mode})"
    offline = f"{name} lies in `{wandb.dir}`; it gets its page by `rl-research sync {run.dir}`."
    _publish_text(f"wandb-{run_id}", f"[{name}]({wandb.url})" if wandb.url else offline, retries=_RETRIES)


def publish_synced_link(outcome: Outcome) -> None:
    """Let the flow run that trained the run link to its W&B page, now that it has one."""
    if outcome.flow_run_id is None or not outcome.url:
        return
    key, flow_run_id = _key(f"wandb-{outcome.run_id}"), UUID(outcome.flow_run_id)
    link = f"[W&B run {outcome.run_id} (synced)]({outcome.url})"
    with best_effort("did not take the W&B link"), get_client(sync_client=True) as client:
        known = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id])
            )
        )
        for artifact in known:
            client.update_artifact(artifact.id, ArtifactUpdate(data=link))
        if not known:
            client.create_artifact(ArtifactCreate(key=key, type="markdown", data=link, flow_run_id=flow_run_id))


def publish_checkpoint(checkpoint: Checkpoint) -> None:
    """Show where *checkpoint* lies, and the facts that W&B gets of it, under a key of its own."""
    facts = {"address": checkpoint.address, **checkpoint_facts(checkpoint)}
    rows: list[Row] = [
        {"fact": name, "value": value if isinstance(value, str) else json.dumps(value, default=str)}
        for name, value in facts.items()
    ]
    publish_table(f"checkpoint-{checkpoint.manifest.run_id}-{checkpoint.name}", rows, f"`{checkpoint.address}`")


def publish_summary(run: Run) -> None:
    """Show the scores and the learning curve."""
    _publish_text(f"summary-{run.config.run_id}", summary_markdown(run.dir))


def publish_study(study: Mapping[str, Any]) -> None:
    """Show the table of a study."""
    _publish_text(f"study-{study['name']}", study_markdown(study))


def publish_pruned(found: Sequence[Pruned], dry_run: bool) -> None:
    """Show what went from each place, what was left alone, and why."""
    verb = "would go" if dry_run else "gone"
    rows: list[Row] = [
        {"place": one.place, "what": verb, "path": r.path, "size": shown_size(r.size), "why": r.reason}
        for one in found
        for r in one.removed
    ]
    rows += [
        {"place": one.place, "what": "left alone", "path": path, "size": "", "why": reason}
        for one in found
        for path, reason in [*one.spared, *((line, "refused") for line in one.refused)]
    ]
    freed = ", ".join(f"{one.place}: {shown_size(one.bytes_removed)} {verb}" for one in found)
    publish_table("prune", rows, freed)


def publish_sync(outcomes: Sequence[Outcome]) -> None:
    """Show what came of each run that a sync looked at; what had arrived before is left out."""
    names = ("run_id", "state", "rows", "rows_recorded", "files", "artifacts", "url", "reason", "remedy")
    shown = [outcome for outcome in outcomes if outcome.state != "unchanged"]
    rows: list[Row] = [{name: getattr(outcome, name) for name in names} for outcome in shown[:_ROWS]]
    publish_table("sync", rows, f"{len(shown):,} of {len(outcomes):,} runs had something to deliver")


def _publish_text(key: str, markdown: str, retries: int = 1) -> None:
    with best_effort(f"did not take {key}", retries=retries):
        create_markdown_artifact(markdown=markdown, key=_key(key))


def publish_table(key: str, rows: list[Row], description: str) -> None:
    """Show *rows*; nobody waits for it."""
    with best_effort(f"did not take the table {key}"):
        create_table_artifact(table=rows, key=_key(key), description=description)


class Progress:
    """A progress artifact, updated from a thread of its own while training goes on in the ``with`` block."""

    def __init__(self, run: Run):
        self.run = run
        self._percent = 0.0
        self._ended = threading.Event()

    def set(self, step: int, total: int) -> None:
        """Note how far training is; costs nothing."""
        self._percent = min(100.0, 100.0 * step / total)

    def __enter__(self) -> "Progress":
        self._thread = _start_thread(self._report)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=_INTERVAL)

    def _report(self) -> None:
        run, shown = self.run.config, self._percent
        with best_effort("did not take progress"):
            artifact = create_progress_artifact(
                progress=shown, key=_key(f"progress-{run.run_id}"), description=f"training of {run.name}"
            )
            assert isinstance(artifact, UUID)  # a coroutine only where an event loop runs
            ended = False
            while not ended:
                ended = self._ended.wait(_INTERVAL)
                if self._percent != shown:
                    shown = self._percent
                    with best_effort("did not take progress"):
                        update_progress_artifact(artifact_id=artifact, progress=shown)


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
