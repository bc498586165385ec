"""A result in a few lines for people."""

import os
import shlex
from collections.abc import Mapping
from typing import Any


def score(result: Mapping[str, Any]) -> str:
    """Return the score of a result, in words."""
    scores = result["scores"]
    if scores is None:
        return f"{result['checkpoint']}: not scored"
    return f"{scores['mean']:.2f} ± {scores['std']:.2f} over {scores['episodes']} episodes"


def summary(result: Mapping[str, Any]) -> str:
    """Return the score against the published one, and where to look."""
    published, wandb = result["published"], result["wandb"]
    against = ""
    if published and result["scores"]:
        spread = "" if published["std"] is None else f" ± {published['std']:.2f}"
        against = f"   (published: {published['mean']:.2f}{spread}, {published['source']})"
    lines = [
        f"score       {score(result)}{against}",
        f"steps       {result['global_step']:,} in {result['seconds']:.0f} s",
        f"report      {result['run_dir']}/report.html",
        f"run folder  {result['run_dir']}",
        f"checkpoint  {_relative(result['checkpoint'])}",
    ]
    if steps := result.get("not_uploaded"):
        said = ", ".join(map(str, steps))
        lines.append(f"not sent    step {said}: still in the run folder; the same command sends it")
    if wandb["mode"] == "online":
        lines.append(f"W&B run     {wandb['url']}")
    elif wandb["dir"]:
        folder = _relative(wandb["dir"])
        lines.append(f"W&B run     wandb leet run {shlex.quote(folder)}     (no account needed)")
        lines.append(f"sync it     rl-research sync {shlex.quote(_relative(result['run_dir']))}")
    return "\n".join(lines) + "\n"


def _relative(path: str) -> str:
    if "://" in path:
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
