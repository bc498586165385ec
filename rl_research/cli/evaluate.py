"""``rl-research evaluate``: score a checkpoint on held-out seeds."""

import click

from rl_research.cli.common import (
    CHECKPOINT,
    POSITIVE,
    Answer,
    answering,
    find_checkpoint,
    in_runs_dir,
    prefect_api,
    trust_env,
    words_of,
)
from rl_research.cli.results import score


@click.command(epilog=CHECKPOINT)
@click.argument("checkpoint")
@words_of("[storage.KEY=VALUE …]")
@in_runs_dir
@answering
@trust_env
@click.option("--episodes", type=POSITIVE, help="How many; as configured if it is not given.")
def evaluate(
    checkpoint: str, overrides: tuple[str, ...], runs_dir: str, answer: Answer, trust_env: bool, episodes: int | None
) -> None:
    """Score a checkpoint on held-out seeds."""
    from rl_research.config import hide_secrets_of
    from rl_research.storage import is_transient

    reference, words = hide_secrets_of(checkpoint, overrides)
    try:  # a mistake is found before a flow run exists
        reference = find_checkpoint(reference, words, runs_dir).address
    except Exception as error:
        if not is_transient(error):
            raise
    with prefect_api() as api:
        from rl_research.flows import evaluate as flows
        from rl_research.orchestration import call_flow

    def without_prefect(_: str) -> object:
        found = flows.find_checkpoint.fn(reference, words, runs_dir)
        return flows.described(found, flows.score_checkpoint.fn(found, episodes, trust_env))

    result = call_flow(flows.evaluate, (reference, episodes, words, trust_env, runs_dir), api, without_prefect)
    answer.result(result, lambda: score(result) + "\n")
