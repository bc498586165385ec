"""``rl-research study``: an experiment under several settings and seeds, compared over the seeds."""

import shlex

import click

from rl_research.cli.common import POSITIVE, Answer, answering, composing, prefect_api, words_of
from rl_research.errors import StudyUnfinished


def _seeds(_context: click.Context, _option: click.Parameter, text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text} should be whole numbers, such as 0,1,2.") from None


@click.command()
@click.argument("name")
@words_of("[key=value …]")
@click.option("--seeds", callback=_seeds, default="0,1,2", show_default=True, help="Seeds of each setting.")
@click.option(
    "--setting", "settings", multiple=True, metavar="'key=value …'",
    help="Overrides of one setting; repeat the option for each.",
)  # fmt: skip
@click.option("--at-a-time", type=POSITIVE, default=1, show_default=True, help="Processes side by side.")
@composing
@answering
def study(
    name: str, overrides: tuple[str, ...], seeds: list[int], settings: tuple[str, ...], at_a_time: int, answer: Answer
) -> None:
    """Train several seeds and settings, and compare them.

    A study of the same NAME goes on where it stopped.
    """
    from rl_research.config import hide_secrets
    from rl_research.report import study_markdown
    from rl_research.studies import plan_study

    grid = [hide_secrets(shlex.split(setting)) for setting in settings]
    parameters = (name, hide_secrets(overrides), seeds, grid)
    planned = plan_study(*parameters)  # a mistake is found before anything is started
    with prefect_api() as api:
        from rl_research.flows import study as flows
        from rl_research.orchestration import call_flow

    def without_prefect(_: str) -> object:
        return flows.run_study(planned, at_a_time, api=None)

    try:
        found = call_flow(flows.study, (*parameters, at_a_time), api, without_prefect, planned)
    except StudyUnfinished as error:
        result = error.result
        answer.result(result, lambda: study_markdown(result))
        raise
    answer.result(found, lambda: study_markdown(found))
