"""What Prefect's pages show of a run: links, a summary, and how far it is.

Nothing here can fail or delay a run: an unreachable API costs a line in the log.
"""

from __future__ import annotations

import contextvars
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from rl_research.checkpoints import FOLDER, Checkpoint
from rl_research.orchestration import pipeline
from rl_research.pruning import Pruned
from rl_research.report import study_markdown, summary_markdown
from rl_research.runs import Run
from rl_research.storage import below
from rl_research.sync import Outcome
from rl_research.system import shown_size, without_password
from rl_research.uploads import checkpoint_facts

_log = logging.getLogger(__name__)
_EVERY = 5.0  # seconds between two reports of progress
_ROWS = 1000  # of a table
_BESIDE = 3  # retries of a request for which nobody waits


@contextmanager
def beside(publish: Callable[[Run], None], run: Run) -> Iterator[None]:
    """Publish in a thread of its own while the body goes on, which may wait for it in the end."""
    context = contextvars.copy_context()  # so that what is published belongs to this flow run
    thread = threading.Thread(target=context.run, args=(publish, run), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=_EVERY)


def introduce(run: Run) -> None:
    """Let the flow run and what it works on lead to each other."""
    label(run)
    publish_links(run)


def publish_links(run: Run) -> None:
    """Link the flow run to its W&B run; offline, say where it lies, for no page may link to a folder."""
    wandb = run.record.wandb
    if wandb.url is None and wandb.dir is None:
        return
    named = f"W&B run {wandb.path} ({wandb.mode})"
    lies = f"{named} lies in `{wandb.dir}`; it gets its page by `rl-research sync {run.dir}`."
    with _guarded("the W&B link", _BESIDE):
        create_markdown_artifact(
            markdown=f"[{named}]({wandb.url})" if wandb.url else lies,
            key=_key(f"wandb-{run.config.run_id}"),
            description=f"`{run.config.run_id}`, {wandb.mode}",
        )


def label(run: Run) -> None:
    """Give the flow run tags to filter by, and labels that lead to the run, its W&B run and its page."""
    flow_run_id, wandb = run.record.flow_run_id, run.record.wandb
    if flow_run_id is None:
        return
    config = run.config
    labels: dict[str, bool | int | float | str] = {
        "run_id": str(config.run_id),
        "run_dir": str(run.dir.absolute()),
        "report": str(run.dir.absolute() / "report.html"),
        "checkpoints": _checkpoints_of(run),
        "wandb": str(wandb.url or wandb.dir or wandb.mode),
    }
    with _guarded("tags and labels", _BESIDE), get_client(sync_client=True) as client:
        before = client.read_flow_run(UUID(flow_run_id)).tags
        facts = [fact.replace(" ", "-") for fact in pipeline.facts_of(config)]
        client.update_flow_run(UUID(flow_run_id), tags=sorted({*before, *facts}))
        client.update_flow_run_labels(UUID(flow_run_id), labels)


def _checkpoints_of(run: Run) -> str:
    """Where they are: below ``storage.url`` if there is one, without its password, else in the run folder."""
    if (url := run.config.storage.url) is None:
        return str(run.dir.absolute() / FOLDER)
    return without_password(below(url, f"{run.config.run_id}/{FOLDER}"))


def publish_checkpoint(checkpoint: Checkpoint) -> None:
    """Show where *checkpoint* lies, and what W&B is told of it, under a key of its own."""
    facts = {"address": checkpoint.address, **checkpoint_facts(checkpoint)}
    run_id = checkpoint.manifest.run_id
    with _guarded("the checkpoint"):
        create_table_artifact(
            table=[{"fact": name, "value": _text(value)} for name, value in facts.items()],
            key=_key(f"checkpoint-{run_id}-{checkpoint.name}"),
            description=f"`{checkpoint.address}`",
        )


def publish_deliveries(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Show what a round of deliveries came to."""
    with _guarded("the table of deliveries"):
        create_table_artifact(
            table=[dict(outcome) for outcome in outcomes],
            key="deliveries",
            description=f"{len(outcomes)} checkpoints that were missing in their storage",
        )


def publish_summary(run: Run) -> None:
    """Show the scores and the learning curve."""
    with _guarded("the summary"):
        create_markdown_artifact(markdown=summary_markdown(run.dir), key=_key(f"summary-{run.config.run_id}"))


def publish_study(study: Mapping[str, Any]) -> None:
    """Show the table of a study."""
    with _guarded("the study"):
        create_markdown_artifact(markdown=study_markdown(study), key=_key(f"study-{study['name']}"))


def publish_pruned(found: Sequence[Pruned], dry_run: bool) -> None:
    """Show what went from each place, what was left alone, and why."""
    verb = "would go" if dry_run else "gone"
    table = [
        {"place": one.place, "what": verb, "path": r.path, "size": shown_size(r.size), "why": r.reason}
        for one in found
        for r in one.removed
    ]
    table += [
        {"place": one.place, "what": "left alone", "path": path, "size": "", "why": reason}
        for one in found
        for path, reason in [*one.spared, *((line, "refused") for line in one.refused)]
    ]
    freed = ", ".join(f"{one.place}: {shown_size(one.bytes_removed)} {verb}" for one in found)
    with _guarded("the table"):
        create_table_artifact(table=table, key="prune", description=freed)


def publish_sync(outcomes: Sequence[Outcome]) -> None:
    """Show what came of each run that a sync looked at; what had arrived before is left out."""
    names = ("run_id", "state", "rows", "rows_recorded", "files", "artifacts", "url", "reason", "remedy")
    shown = [outcome for outcome in outcomes if outcome.state != "unchanged"]
    with _guarded("the table of runs"):
        create_table_artifact(
            table=[{name: getattr(outcome, name) for name in names} for outcome in shown[:_ROWS]],
            key="sync",
            description=f"{len(shown):,} of {len(outcomes):,} runs had something to deliver",
        )


def publish_synced_link(outcome: Outcome) -> None:
    """Let the flow run that trained the run link to its page, now that it has one."""
    if outcome.flow_run_id is None or not outcome.url:
        return
    key, link = (_key(f"wandb-{outcome.run_id}"), f"[W&B run {outcome.run_id} (synced)]({outcome.url})")
    with _guarded("the W&B link"), get_client(sync_client=True) as client:
        flow_run_id = UUID(outcome.flow_run_id)
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id])
            )
        )
        for artifact in found:
            client.update_artifact(artifact.id, ArtifactUpdate(data=link))
        if not found:
            client.create_artifact(
                ArtifactCreate(key=key, type="markdown", data=link, flow_run_id=flow_run_id)
            )


class Progress:
    """A progress artifact, updated from a thread of its own while training goes on."""

    def __init__(self, run: Run):
        self.run = run
        self._percent = 0.0
        self._ended = threading.Event()
        context = contextvars.copy_context()  # so that the artifact belongs to this task run
        self._thread = threading.Thread(target=context.run, args=(self._report,), daemon=True)

    def set(self, step: int, total: int) -> None:
        """Note how far training is; costs nothing."""
        self._percent = min(100.0, 100.0 * step / total)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=_EVERY)

    def _report(self) -> None:
        artifact: UUID | None = None
        shown = -1.0
        while True:
            ended = self._ended.wait(_EVERY if artifact else 0.0)
            if self._percent != shown:
                with _guarded("progress"):
                    shown = self._percent
                    artifact = self._show(artifact, shown)
            if ended or artifact is None:
                return

    def _show(self, artifact: UUID | None, percent: float) -> UUID:
        if artifact is not None:
            update_progress_artifact(artifact_id=artifact, progress=percent)
            return artifact
        made: Any = create_progress_artifact(
            progress=percent,
            key=_key(f"progress-{self.run.config.run_id}"),
            description=f"training of {self.run.config.name}",
        )
        assert isinstance(made, UUID)
        return made


@contextmanager
def _guarded(what: str, retries: int = 1) -> Iterator[None]:
    with ExitStack() as impatience:
        with suppress(Exception):  # it reads files that somebody may be editing
            impatience.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: retries}))
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever the API does, the run goes on
            reason = str(error) or type(error).__name__
            _log.warning("Prefect did not take %s: %s", what, reason)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
