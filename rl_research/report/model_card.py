"""The model card of a policy, as the Hugging Face Hub shows it: score, interval, how it was trained, how to use it."""

from __future__ import annotations

import shlex
from pathlib import Path

from rl_research.checkpoints import Manifest, Scores
from rl_research.config import Config, algorithm_class
from rl_research.statistics import bootstrap_interval


def card(manifest: Manifest, config: Config, scores: Scores, stem: str) -> str:
    """Return the README of a folder whose SB3 zip is called ``{stem}.zip``; *scores* have their episodes' returns."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Markdown, not HTML: nothing is escaped.
    looks = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True)
    cls = algorithm_class(config.algorithm.name)
    overrides = (manifest.model_extra or {}).get("overrides")  # older manifests have none
    words = [word for word in overrides or () if not word.lstrip("+").startswith(("run_id=", "runs_dir="))]
    versions = manifest.versions or {}
    return looks.get_template("model_card.md").render(
        algorithm=cls.__name__,
        command=shlex.join(["rl-research", "train", *words]) if overrides is not None else None,
        config=config,
        arguments="".join(f", {name}={value!r}" for name, value in config.env.kwargs.items()),
        env=config.env.id.rpartition(":")[2],
        interval=bootstrap_interval(list(scores.returns)),
        manifest=manifest,
        normalized=config.env.normalize is not False,
        own_modules=[*config.plugins, *([config.env.id.rpartition(":")[0]] if ":" in config.env.id else [])],
        package=cls.__module__.split(".")[0],
        scores=scores,
        stem=stem,
        versions=", ".join(f"{name} {versions[name]}" for name in ("stable-baselines3", "torch") if name in versions),
    )
