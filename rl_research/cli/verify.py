"""``rl-research verify``: check a checkpoint's every byte, and its scores."""

from collections.abc import Mapping

import click

from rl_research.cli.common import CHECKPOINT, as_json, in_runs_dir, lookup, own_stdout, trust_env, words_of


@click.command(epilog=CHECKPOINT)
@click.argument("checkpoint")
@words_of("[storage.KEY=VALUE …]")
@in_runs_dir
@as_json
@trust_env
@click.option("--evaluate", is_flag=True, help="Play the recorded episodes again.")
def verify(
    checkpoint: str, overrides: tuple[str, ...], runs_dir: str, as_json: bool, trust_env: bool, evaluate: bool
) -> None:
    """Check a checkpoint's every byte, and its scores."""
    with own_stdout(as_json) as answer:
        from rl_research import training
        from rl_research.checkpoints import find
        from rl_research.config import hide_secrets_of

        reference, words = hide_secrets_of(checkpoint, overrides)
        found = find(reference, **lookup(words, runs_dir))
        answer.result(training.verify(found, evaluate=evaluate, trust_env=trust_env), _table)


def _table(found: Mapping[str, object]) -> str:
    return "".join(f"{name:<18} {value}\n" for name, value in found.items())
