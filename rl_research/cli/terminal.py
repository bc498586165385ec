"""What the command says: the result of a run in a few lines, and the help on settings."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any


def score(result: Mapping[str, Any]) -> str:
    """The score of a result, in words."""
    scores = result["scores"]
    if scores is None:
        return f"{result['checkpoint']}: not scored"
    return f"{scores['mean']:.2f} ± {scores['std']:.2f} over {scores['episodes']} episodes"


def summary(result: Mapping[str, Any]) -> str:
    """The score against the published one, and where to look."""
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


def help_on_settings() -> str:
    """Groups and settings, straight from the schema and the folder of configurations."""
    from rl_research.config import Config, choices, compose, groups, settings, validated

    lines = ["usage: rl-research train [key=value …] [--json] [--cfg] [-h]", "", "groups:"]
    for group in groups():
        text = textwrap.fill(", ".join(choices(group)), 96, subsequent_indent=" " * 20)
        lines.append(f"  {group + '=NAME':<17} {text}")
    lines += ["", "settings, with their defaults:"]
    defaults = validated(Config, compose()).model_dump(mode="json")
    for name, meaning in settings().items():
        lines.append(f"  {name + '=' + _shown(_at(defaults, name)):<38} {meaning}")
    lines += [
        "",
        "options:",
        "  --json    print one JSON object on stdout, everything else on stderr",
        "  --cfg     print the composed configuration and stop",
        "",
        "exit codes: 0 done; 2 a mistake, said in one line; 75 stopped by a signal and committed;",
        "            130 cut off; 1 a bug, with its traceback",
    ]
    return "\n".join(lines) + "\n"


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "runs/RUN_ID" if value == "{run_dir}" else str(value)
