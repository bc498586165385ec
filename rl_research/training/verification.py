"""Whether a checkpoint is what its manifest says: bytes, parameters and scores."""

from typing import Any

from rl_research.checkpoints import Checkpoint
from rl_research.errors import CheckpointDamaged, CheckpointMissing
from rl_research.training import evaluation, models


def verify(checkpoint: Checkpoint, *, evaluate: bool = False, trust_env: bool = False) -> dict[str, Any]:
    """Hash every file, load the tensors, hash the parameters; *evaluate* also plays the episodes.

    Returns what was checked; raises `CheckpointDamaged` for the first thing that differs. Nothing is
    unpickled, so a stranger's checkpoint can be verified.
    """
    checkpoint.verify()
    config = evaluation.config_of(checkpoint, trust_env=trust_env)
    with evaluation.loaded_policy(checkpoint, config) as model:
        parameters = models.parameters_sha256(model)
    if parameters != (expected := checkpoint.manifest.parameters_sha256):
        raise CheckpointDamaged(
            f"{checkpoint.address}: parameters_sha256 is {parameters}, where the manifest says {expected}"
        )
    found: dict[str, Any] = {
        "checkpoint": checkpoint.address,
        "global_step": checkpoint.global_step,
        "files": len(checkpoint.files),
        "bytes": sum(size for size, _ in checkpoint.files.values()),
        "parameters_sha256": parameters,
        "resume_mode": checkpoint.manifest.resume_mode,
    }
    if extensions := (checkpoint.manifest.model_extra or {}).get("extensions"):
        found["extensions"] = extensions  # a run from the beginning has other schedules, and other bits
    return {**found, "scores": _played_again(checkpoint, trust_env)} if evaluate else found


def _played_again(checkpoint: Checkpoint, trust_env: bool) -> dict[str, Any]:
    recorded = checkpoint.manifest.final_scores or checkpoint.manifest.scores
    if recorded is None or not recorded.episodes:
        raise CheckpointMissing(f"{checkpoint.address}: its manifest records no scores that could be played again")
    scores = evaluation.evaluate_checkpoint(
        checkpoint, episodes=recorded.episodes, first_seed=recorded.first_seed, trust_env=trust_env
    )
    if (scores.mean, scores.std) != (recorded.mean, recorded.std):
        raise CheckpointDamaged(
            f"{checkpoint.address}: its episodes were played again with {scores.mean} ± {scores.std}, "
            f"where the manifest says {recorded.mean} ± {recorded.std}. Other versions of "
            "the packages, or another processor, can do that; the manifest names the versions."
        )
    return scores.without_episodes().facts()
