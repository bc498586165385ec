"""Options, answers on standard output and Prefect's settings, shared by the verbs."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from rl_research.errors import ConfigError, RLResearchError

if TYPE_CHECKING:
    from rl_research.checkpoints import Checkpoint
    from rl_research.orchestration import EmbeddedAPI

T = TypeVar("T")
Verb = TypeVar("Verb", bound=Callable[..., object])

REFERENCE = "run_id, run folder, checkpoint folder or fsspec URL"
CHECKPOINT = f"CHECKPOINT: {REFERENCE}; then @best or @step-N, else the latest."
POSITIVE = click.IntRange(min=1)

in_runs_dir = click.option(
    "--runs-dir", default="runs", show_default=True, help="Folder in which a run_id is looked for."
)
trust_env = click.option(
    "--trust-plugins",
    "--trust-env",
    "trust_env",
    is_flag=True,
    help="Import its plugins, and the module of an environment such as my_module:MyEnv-v0.",
)


def words_of(metavar: str) -> Callable[[Verb], Verb]:
    """Return a decorator that lets a verb take any number of words, which help calls *metavar*."""
    return click.argument("overrides", nargs=-1, metavar=metavar)


def composing(verb: Callable[..., T]) -> Callable[..., T]:
    """Give *verb* the option ``--config-dir``, whose folders become the first of its *overrides*."""

    @click.option(
        "--config-dir", "config_dirs", multiple=True, metavar="PATH", is_eager=True,
        help="Folder with configurations of your own, found before ours; repeat it for another.",
    )  # fmt: skip
    @wraps(verb)
    def composed(*arguments: object, config_dirs: Sequence[str], overrides: Sequence[str], **options: object) -> T:
        return verb(*arguments, overrides=(*as_overrides(config_dirs), *overrides), **options)

    return composed


def as_overrides(config_dirs: Sequence[str]) -> list[str]:
    """Return what ``--config-dir`` means, as overrides, which go into flow runs and studies."""
    if not config_dirs:
        return []
    from rl_research.config import CONFIG_DIRS, quoted

    return [f"{CONFIG_DIRS}={quoted(list(config_dirs))}"]


def split_storage(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of where checkpoints are stored among *words*, and the other words."""
    overrides = [word for word in words if word.lstrip("+").startswith(("storage.options.", "storage.url="))]
    return overrides, [word for word in words if word not in overrides]


def find_checkpoint(reference: str, overrides: Sequence[str], runs_dir: str) -> Checkpoint:
    """Return the checkpoint that *reference* names, here or in the storage of *overrides*."""
    from rl_research.checkpoints import find_in_storage  # with the store's clients, which help need not wait for

    return find_in_storage(reference, overrides, runs_dir)


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
        "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",  # each event that a server does not take, in 3,000 characters
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
    home = os.environ.get("PREFECT_HOME") or "~/.prefect"
    try:
        folder = Path(home).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: nobody's home
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"PREFECT_HOME={home}: not a folder that can be written ({reason}). Set it to one.") from None
    from rl_research.orchestration import check_settings

    check_settings()
    if url := os.environ.get("PREFECT_API_URL"):
        from rl_research.orchestration import ask_health

        try:
            ask_health(url, timeout=10)
        except (OSError, ValueError) as error:
            spelt = url if "://" in url else f"http://{url}"
            spelt = spelt if "/api" in spelt else f"{spelt.rstrip('/')}/api"
            remedy = (
                "Start it (`prefect server start`), or unset PREFECT_API_URL to do without a server."
                if spelt == url
                else f"Such an address has a scheme and ends in /api: PREFECT_API_URL={spelt}."
            )
            raise ConfigError(f"PREFECT_API_URL={url}: no Prefect API answers there ({error}). {remedy}") from None


class Answer:
    """Standard output, kept for the answer: text, or one JSON object where *as_json* asks for it."""

    def __init__(self, descriptor: int, as_json: bool):
        self._descriptor, self.as_json = descriptor, as_json

    def __call__(self, text: str) -> None:
        """Write *text*; a reader that has gone does not want it."""
        try:
            with os.fdopen(os.dup(self._descriptor), "w", encoding="utf-8", errors="backslashreplace") as out:
                out.write(text)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise RLResearchError(f"The answer cannot be written to standard output: {error.strerror}.") from None

    def result(self, found: Mapping[str, object], shown: Callable[[], str]) -> None:
        """Write *found* as one JSON object, or for people what *shown* returns."""
        self(json.dumps(found) + "\n" if self.as_json else shown())


def answering(verb: Callable[..., T]) -> Callable[..., T]:
    """Give *verb* the option ``--json``, and its argument *answer* the `Answer` that it writes to.

    Standard output is kept for the answer; what libraries and their children print meanwhile goes to stderr.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @wraps(verb)
    def answered(*arguments: object, as_json: bool, **options: object) -> T:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        try:
            with redirect_stdout(sys.stderr):
                return verb(*arguments, answer=Answer(kept, as_json), **options)
        finally:
            os.dup2(kept, 1)
            os.close(kept)

    return answered
