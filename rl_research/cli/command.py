"""``rl-research VERB [key=value …]``: the pipeline from a terminal.

A verb imports what it needs when it runs, so that ``--help`` answers at once.
"""

import logging
import os
import sys
from collections.abc import Sequence

import click

from rl_research import __version__
from rl_research.cli.checkpoints import checkpoints
from rl_research.cli.doctor import doctor
from rl_research.cli.evaluate import evaluate
from rl_research.cli.export import export
from rl_research.cli.init import init
from rl_research.cli.operate import deploy, down, serve, up
from rl_research.cli.prune import prune
from rl_research.cli.study import study
from rl_research.cli.sync import sync
from rl_research.cli.train import train
from rl_research.cli.verify import verify
from rl_research.errors import EnvironmentFailed, RLResearchError
from rl_research.system import keep_streams

_INTERRUPTED = 130  # as a shell reports SIGINT


class _InOrder(click.Group):
    """Lists its verbs as they were given, in the order of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's form
        return list(self.commands)


@click.group(
    cls=_InOrder,
    no_args_is_help=False,
    commands=(init, train, study, evaluate, verify, checkpoints, export, prune, sync, doctor, up, down, deploy, serve),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="rl-research", message="%(prog)s %(version)s")
def verbs() -> None:
    """Reinforcement-learning experiments that survive the night.

    \b
    rl-research train experiment=cartpole_ppo experiment.seed=1
    rl-research evaluate runs/RUN_ID --episodes 100
    rl-research verify runs/RUN_ID --evaluate
    rl-research checkpoints RUN_ID
    rl-research prune runs --budget 50GB
    rl-research sync
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for a mistake, 75 stopped, 130 cut off."""
    if arguments is None:
        keep_streams()  # of this process, which is the command's own
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("rl_research").setLevel(logging.INFO)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and sys.getfilesystemencoding() == "ascii":  # LC_ALL=C without Python's UTF-8 mode
        command = [sys.executable, "-m", "rl_research", *words]
        os.execve(sys.executable, command, {**os.environ, "PYTHONUTF8": "1"})
    try:
        with verbs.make_context("rl-research", words) as context:
            code: int | None = verbs.invoke(context)
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    except click.UsageError as mistake:
        sys.stderr.write(f"rl-research: {_in_a_line(mistake)}\n")
        return mistake.exit_code
    except EnvironmentFailed as error:
        sys.stderr.write(f"{error.trace}rl-research: {error}\n")
        return error.exit_code
    except RLResearchError as error:
        sys.stderr.write(f"rl-research: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("rl-research: stopped\n")
        return _INTERRUPTED
    return code or 0


def _in_a_line(mistake: click.UsageError) -> str:
    message = " ".join(mistake.format_message().split())
    if "Did you mean" in message:
        return message
    path = mistake.ctx.command_path if mistake.ctx is not None else "rl-research"
    return f"{message} See `{path} --help`."
