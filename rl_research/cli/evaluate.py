"""``rl-research evaluate``: score a checkpoint on held-out seeds."""

import click

from rl_research.cli.common import (
    CHECKPOINT,
    POSITIVE,
    as_json,
    in_runs_dir,
    lookup,
    own_stdout,
    prefect_api,
    trust_env,
    words_of,
)
from rl_research.cli.results import score


@click.command(epilog=CHECKPOINT)
@click.argument("checkpoint")
@words_of("[storage.KEY=VALUE …]")
@in_runs_dir
@as_json
@trust_env
@click.option("--episodes", type=POSITIVE, help="How many; as configured if it is not given.")
def evaluate(
    checkpoint: str, overrides: tuple[str, ...], runs_dir: str, as_json: bool, trust_env: bool, episodes: int | None
) -> None:
    """Score a checkpoint on held-out seeds."""
    with own_stdout(as_json) as answer:
        from rl_research.checkpoints import find
        from rl_research.config import hide_secrets_of
        from rl_research.storage import is_transient

        reference, words = hide_secrets_of(checkpoint, overrides)
        try:  # a mistake is found before a flow run exists
            reference = find(reference, **lookup(words, runs_dir)).address
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
        answer.result(result, lambda found: score(found) + "\n")
