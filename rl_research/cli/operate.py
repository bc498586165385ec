"""``rl-research up``, ``down``, ``deploy`` and ``serve``: the pipeline runs itself on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rl_research.cli.common import positive

if TYPE_CHECKING:
    from rl_research.cli.common import Verbs
    from rl_research.orchestration import LocalServer

_FILE = Path("deployment.yaml")


def add(verbs: Verbs) -> None:
    """Add the verbs to the command's *verbs*."""
    for name, verb, text in (
        ("up", _up, "start a Prefect server and a worker here, and deploy"),
        ("down", _down, "stop them; flow runs commit first"),
        ("deploy", _deploy, "check deployment.yaml and deploy it at PREFECT_API_URL"),
        ("serve", _serve, "run the deployments from this one process, without a worker"),
    ):
        made = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(verb=verb, parser=made, overrides=[])
        if name == "serve":
            made.add_argument("--limit", type=positive, default=2, help="flow runs at a time (default: 2)")


def _up(given: argparse.Namespace) -> int:
    _takes_no_overrides(given)
    local = _local_server()
    os.environ.update(local.env)
    from rl_research.orchestration import deploy, read

    read(_FILE)  # a mistake is found before anything is started
    local.start_server()
    deploy(_FILE)
    local.start_worker()
    sys.stdout.write(
        f"Prefect     {local.url.removesuffix('/api')}\n"
        f"elsewhere   export PREFECT_API_URL={local.url}\n"
        f"start one   prefect deployment run train/nightly\n"
        f"logs        {_near(local.server.log)} {_near(local.worker.log)}\n"
        "stop        rl-research down\n"
    )
    return 0


def _down(given: argparse.Namespace) -> int:
    _takes_no_overrides(given)
    _local_server().stop()
    return 0


def _deploy(given: argparse.Namespace) -> int:
    _takes_no_overrides(given)
    _find_server()
    from rl_research.orchestration import deploy

    deploy(_FILE)
    return 0


def _serve(given: argparse.Namespace) -> int:
    _takes_no_overrides(given)
    _find_server()
    from rl_research.orchestration import serve

    sys.stdout.write(
        f"serving     {_FILE}, {given.limit} flow runs at a time\n"
        "start one   prefect deployment run train/nightly\n"
        "stop        Ctrl-C; flow runs commit first. Once more: at once\n"
    )
    sys.stdout.flush()
    serve(_FILE, given.limit)
    return 0


def _takes_no_overrides(given: argparse.Namespace) -> None:
    if given.overrides:
        given.parser.error(f"unrecognized argument: {given.overrides[0]}")


def _local_server() -> LocalServer:
    import yaml

    from rl_research.errors import ConfigError
    from rl_research.orchestration import LocalServer

    try:
        pool = yaml.safe_load(_FILE.read_text())["definitions"]["work_pool"]["name"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise ConfigError(
            f"{_FILE}: cannot be read here, or names no work pool. Start the command in the folder of "
            "the project, where deployment.yaml lies."
        ) from None
    return LocalServer(pool)


def _find_server() -> None:
    """Talk to PREFECT_API_URL, else to what `rl-research up` has started; `ConfigError` without either."""
    from rl_research.cli.common import prepare_prefect
    from rl_research.errors import ConfigError

    prepare_prefect()
    os.environ.pop("PREFECT_LOGGING_LEVEL")  # what is deployed or served is said here
    if "PREFECT_API_URL" not in os.environ:
        raise ConfigError(
            "PREFECT_API_URL is not set, and no server runs here: deployments outlive this command, so "
            "they need one. Start it with `rl-research up`, or set PREFECT_API_URL."
        )


def _near(path: Path) -> str:
    return os.path.relpath(path)
