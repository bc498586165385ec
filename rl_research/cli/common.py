"""What several verbs share: their arguments, their answer on standard output, Prefect's settings."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rl_research.orchestration import EmbeddedAPI

    Verbs = _SubParsersAction[argparse.ArgumentParser]

REFERENCE = "run_id, run folder, checkpoint folder or fsspec URL"
_TRUST = "import the module of an environment such as my_module:MyEnv-v0"


def takes_a_checkpoint(verb: argparse.ArgumentParser) -> None:
    """Let *verb* take a checkpoint and the options of its file system."""
    verb.add_argument("checkpoint", help=f"{REFERENCE}; then @best or @step-N, else the latest")
    takes_places(verb)
    verb.add_argument("--trust-env", action="store_true", help=_TRUST)


def takes_places(verb: argparse.ArgumentParser) -> None:
    """Let *verb* take where runs are looked for, and ``--json``."""
    verb.add_argument(
        "overrides", nargs="*", metavar="storage.KEY=VALUE", help="storage.url, storage.options.…"
    )
    verb.add_argument("--runs-dir", default="runs", help="where a run_id is looked for")
    verb.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def is_about_storage(word: str) -> bool:
    """Whether *word* is an override of where checkpoints are stored."""
    return word.lstrip("+").startswith(("storage.options.", "storage.url="))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} should be a whole number of at least 1")
    return number


def lookup(given: argparse.Namespace) -> dict[str, Any]:
    """Where the verb looks for runs, as `checkpoints.find` takes it."""
    from rl_research.checkpoints import storage_among

    storage = storage_among(given.overrides)
    return {"options": dict(storage.options), "runs_dir": given.runs_dir, "url": storage.url}


def hide_secrets(given: argparse.Namespace) -> None:
    """Move literal secrets among the words of the command into variables of this process."""
    from rl_research.config import checkpoint_out_of_sight, out_of_sight

    if hasattr(given, "checkpoint"):
        given.checkpoint, given.overrides = checkpoint_out_of_sight(given.checkpoint, given.overrides)
    else:
        given.overrides = out_of_sight(given.overrides)


def prepare_prefect() -> None:
    """Prefect's own variables, unless the user has set them: quiet, and patient at the first start.

    Where `rl-research up` keeps a server it is used, which saves the start of an embedded one.
    """
    if "PREFECT_API_URL" not in os.environ:
        from rl_research.orchestration import running_url

        if url := running_url():
            os.environ["PREFECT_API_URL"] = url
    for name, value in {
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is said once, by this command
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }.items():
        os.environ.setdefault(name, value)
    _check_prefect()


@contextmanager
def prefect_api() -> Iterator[EmbeddedAPI | None]:
    """Prepare Prefect; where there is no server its embedded API, which starts while the body imports."""
    prepare_prefect()
    from rl_research.orchestration import embedded_api

    with embedded_api.unless_there_is_one() as api:
        yield api


def _check_prefect() -> None:
    """Say in one line what Prefect would say in a hundred."""
    import urllib.request
    from urllib.error import URLError

    from rl_research.errors import ConfigError

    if home := os.environ.get("PREFECT_HOME"):
        try:
            Path(home).expanduser().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"PREFECT_HOME={home}: not a folder that can be written ({error.strerror}). "
                "Set it to one, or unset it."
            ) from None
    if url := os.environ.get("PREFECT_API_URL"):
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10):
                pass
        except (URLError, OSError, ValueError) as error:
            raise ConfigError(
                f"PREFECT_API_URL={url}: no Prefect API answers there ({error}). "
                "Start it (`prefect server start`), or unset PREFECT_API_URL to do without a server."
            ) from None


@contextmanager
def own_stdout() -> Iterator[Callable[[str], None]]:
    """Keep standard output for the answer; what libraries and their children print goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield lambda text: _write(kept, text)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _write(descriptor: int, text: str) -> None:
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as out:
        out.write(text)
