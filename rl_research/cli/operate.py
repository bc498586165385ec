"""``rl-research up``, ``down``, ``deploy`` and ``serve``: the pipeline runs itself on this machine."""

import os
import sys
from pathlib import Path

import click

from rl_research.cli.common import POSITIVE, prepare_prefect
from rl_research.errors import ConfigError

_FILE = Path("deployment.yaml")


@click.command()
def up() -> None:
    """Start a Prefect server and a worker here, and deploy."""
    from rl_research.orchestration import LocalServer

    local = LocalServer()
    os.environ.update(local.env)
    from rl_research.orchestration import deploy, read

    read(_FILE)  # a mistake is found before anything is started
    local.start_server()
    local.start_worker(deploy(_FILE))
    sys.stdout.write(
        f"Prefect     {local.url.removesuffix('/api')}\n"
        f"elsewhere   export PREFECT_API_URL={local.url}\n"
        f"start one   prefect deployment run train/nightly\n"
        f"logs        {os.path.relpath(local.server.log)} {os.path.relpath(local.worker.log)}\n"
        "stop        rl-research down\n"
    )


@click.command()
def down() -> None:
    """Stop the server and the worker; flow runs commit first."""
    from rl_research.orchestration import LocalServer

    LocalServer().stop()


@click.command()
def deploy() -> None:
    """Check deployment.yaml and deploy it at PREFECT_API_URL."""
    _find_server()
    from rl_research import orchestration

    orchestration.deploy(_FILE)


@click.command()
@click.option("--limit", type=POSITIVE, default=2, show_default=True, help="Flow runs at a time.")
def serve(limit: int) -> None:
    """Deploy, and run a worker in this terminal."""
    _find_server()
    from rl_research import orchestration

    sys.stdout.write(
        f"serving     {_FILE}, {limit} flow runs at a time\n"
        "start one   prefect deployment run train/nightly\n"
        "stop        Ctrl-C; flow runs commit first. Once more: at once\n"
    )
    sys.stdout.flush()
    orchestration.work_until_stopped(orchestration.deploy(_FILE), limit)


def _find_server() -> None:
    """Use PREFECT_API_URL, else the server of `rl-research up`; raise `ConfigError` without either."""
    prepare_prefect()
    for name in ("PREFECT_LOGGING_LEVEL", "PREFECT_INTERNAL_LOGGING_LEVEL"):
        os.environ.pop(name)  # what is deployed or served is said here
    if "PREFECT_API_URL" not in os.environ:
        raise ConfigError(
            "PREFECT_API_URL is not set, and no server runs here: deployments outlive this command, so "
            "they need one. Start it with `rl-research up`, or set PREFECT_API_URL."
        )
