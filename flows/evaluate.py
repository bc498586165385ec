"""Score a checkpoint, wherever it lies.

rl-research evaluate runs/RUN_ID --episodes 100
prefect deployment run evaluate/weekly -p checkpoint=s3://bucket/runs/RUN_ID
"""

from collections.abc import Sequence
from typing import Any

from prefect import flow, task

from rl_research.checkpoints import Checkpoint, Scores, find_in_storage
from rl_research.config import refuse_secrets
from rl_research.orchestration import RETRY_TRANSIENT
from rl_research.training import evaluate_checkpoint


@flow(name="evaluate", flow_run_name="{checkpoint}", log_prints=False)
def evaluate(
    checkpoint: str,
    episodes: int | None = None,
    overrides: Sequence[str] = (),
    trust_env: bool = False,
    runs_dir: str = "runs",
) -> dict[str, Any]:
    """Find *checkpoint* and score it on *episodes* held-out seeds.

    *checkpoint* is a path, a URL or a ``run_id``, and which of its checkpoints, such as ``mine@best``.
    *overrides* are ``storage.url=URL``, below which a ``run_id`` is looked for besides *runs_dir*, and
    ``storage.options.KEY=VALUE`` for its file system, no secrets among them.
    """
    refuse_secrets(overrides, checkpoint)
    found = find_checkpoint(checkpoint, overrides, runs_dir)
    return described(found, score_checkpoint(found, episodes, trust_env))


def described(found: Checkpoint, scores: Scores) -> dict[str, Any]:
    """Return what the flow returns of the checkpoint that it has *found*, and of its *scores*."""
    return {
        "checkpoint": found.address,
        "run_id": found.manifest.run_id,
        "global_step": found.global_step,
        "parameters_sha256": found.manifest.parameters_sha256,
        "scores": scores.summary(),
    }


@task(task_run_name="find {reference}", **RETRY_TRANSIENT)
def find_checkpoint(reference: str, overrides: Sequence[str], runs_dir: str) -> Checkpoint:
    """Return the checkpoint that *reference* names; transient failures are retried."""
    return find_in_storage(reference, overrides, runs_dir)


@task(task_run_name="score step {checkpoint.global_step}", **RETRY_TRANSIENT)
def score_checkpoint(checkpoint: Checkpoint, episodes: int | None, trust_env: bool) -> Scores:
    """Score *checkpoint*'s policy, from tensors and numbers only."""
    return evaluate_checkpoint(checkpoint, episodes=episodes, trust_env=trust_env)
