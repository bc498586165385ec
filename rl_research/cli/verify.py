"""``rl-research verify``: check a checkpoint's every byte, and its scores."""

import click

from rl_research.cli.common import CHECKPOINT, Answer, answering, find_checkpoint, in_runs_dir, trust_env, words_of


@click.command(epilog=CHECKPOINT)
@click.argument("checkpoint")
@words_of("[storage.KEY=VALUE …]")
@in_runs_dir
@answering
@trust_env
@click.option("--evaluate", is_flag=True, help="Play the recorded episodes again.")
def verify(
    checkpoint: str, overrides: tuple[str, ...], runs_dir: str, answer: Answer, trust_env: bool, evaluate: bool
) -> None:
    """Check a checkpoint's every byte, and its scores."""
    from rl_research import training
    from rl_research.config import hide_secrets_of

    reference, words = hide_secrets_of(checkpoint, overrides)
    stored = find_checkpoint(reference, words, runs_dir)
    found = training.verify(stored, evaluate=evaluate, trust_env=trust_env)
    answer.result(found, lambda: "".join(f"{name:<18} {value}\n" for name, value in found.items()))
