"""Options, answers on standard output and Prefect's settings, shared by the verbs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rl_research.orchestration import EmbeddedAPI

REFERENCE = "run_id, run folder, checkpoint folder or fsspec URL"
CHECKPOINT = f"CHECKPOINT: {REFERENCE}; then @best or @step-N, else the latest."
POSITIVE = click.IntRange(min=1)

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
in_runs_dir = click.option(
    "--runs-dir", default="runs", show_default=True, help="Folder in which a run_id is looked for."
)
trust_env = click.option(
    "--trust-env", is_flag=True, help="Import the module of an environment such as my_module:MyEnv-v0."
)


def words_of(metavar: str) -> Callable[..., Any]:
    """Return a decorator that lets a verb take any number of words, which help calls *metavar*."""
    return click.argument("overrides", nargs=-1, metavar=metavar)


def is_about_storage(word: str) -> bool:
    """Return whether *word* is an override of where checkpoints are stored."""
    return word.lstrip("+").startswith(("storage.options.", "storage.url="))


def split_storage(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of ``storage`` among *words*, and the other words."""
    overrides = [word for word in words if is_about_storage(word)]
    return overrides, [word for word in words if word not in overrides]


def lookup(overrides: Sequence[str], runs_dir: str) -> dict[str, Any]:
    """Return where the verb looks for runs, as `checkpoints.find` takes it."""
    from rl_research.config import load_storage

    storage = load_storage(overrides)
    return {"options": dict(storage.options), "runs_dir": runs_dir, "url": storage.url}


def prepare_prefect() -> None:
    """Set Prefect's own variables where the user has not: quiet, and a long time for a first start.

    A server that `rl-research up` keeps is used, which saves the start of an embedded one.
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
    from rl_research.orchestration import embed_api

    with embed_api() as api:
        yield api


def _check_prefect() -> None:
    """Raise `ConfigError`, one line, for what Prefect would say in a hundred."""
    from urllib.error import URLError
    from urllib.request import urlopen

    from rl_research.errors import ConfigError

    if home := os.environ.get("PREFECT_HOME"):
        try:
            Path(home).expanduser().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"PREFECT_HOME={home}: not a folder that can be written ({error.strerror}). Set it to one, or unset it."
            ) from None
    if url := os.environ.get("PREFECT_API_URL"):
        try:
            with urlopen(f"{url.rstrip('/')}/health", timeout=10):
                pass
        except (URLError, OSError, ValueError) as error:
            raise ConfigError(
                f"PREFECT_API_URL={url}: no Prefect API answers there ({error}). "
                "Start it (`prefect server start`), or unset PREFECT_API_URL to do without a server."
            ) from None


class Answer:
    """Standard output, kept for the answer: text, or one JSON object where *as_json* asks for it."""

    def __init__(self, descriptor: int, as_json: bool):
        self._descriptor, self.as_json = descriptor, as_json

    def __call__(self, text: str) -> None:
        """Write *text*."""
        with os.fdopen(os.dup(self._descriptor), "w", encoding="utf-8") as out:
            out.write(text)

    def json(self, **found: Any) -> None:
        """Write *found* as one JSON object."""
        self(json.dumps(found) + "\n")

    def result(self, found: Mapping[str, Any], shown: Callable[[Any], str]) -> None:
        """Write *found* as JSON, or as *shown* puts it for people."""
        self(json.dumps(found) + "\n" if self.as_json else shown(found))


@contextmanager
def own_stdout(as_json: bool = False) -> Iterator[Answer]:
    """Keep standard output for the answer; what libraries and their children print goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield Answer(kept, as_json)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
