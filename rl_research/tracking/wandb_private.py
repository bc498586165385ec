"""Private names of wandb that this project relies on, as read in wandb 0.31.0.

``tests/test_wandb_private.py`` fails where a release changes it, which any minor release may: that is why
``wandb<0.32`` is required. Nothing else in the project names these. wandb itself is imported by the functions
that need it, so that verbs without it start fast.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from rl_research.errors import LoggingError

if TYPE_CHECKING:
    from wandb import Artifact, Run

#: How each ``run-*.wandb`` begins: W&B's magic and the version of its format. Without it no log is read.
LOG_MAGIC = b":W&B"
LOG_HEADER = LOG_MAGIC + b"\xe1\xbe\x00"


#: wandb's own server, and the one behind it, under which netrc has the key of a login with an earlier version
#: (``wandb.sdk.lib.urls``). Without them the key of `wandb login` is not found.
DEFAULT_SERVER, SERVER_BEHIND_IT = "https://api.forge.coreweave.com", "https://api.wandb.ai"

#: A ``wandb.proto.wandb_internal_pb2.Record`` or a part of it. protobuf makes the classes at import, so there
#: are no types. What is read: `history`, `summary`, `run`, `artifact`, `files`, `stats`, `output_raw`, `exit`, `num`.
Record: TypeAlias = Any


def parse_record(payload: bytes) -> Record:
    """Return the record with this *payload*; an empty one for ``b""``.

    Without it neither what is logged already nor what a sync has to deliver is known.
    """
    from wandb.proto import wandb_internal_pb2

    return wandb_internal_pb2.Record.FromString(payload)  # type: ignore[attr-defined]


#: What wandb-core asks when it resumes a run, less the fields that are not read: every server that takes runs answers
#: this. It tells what a server has of a run; without an answer, rows that may have arrived are not sent again.
RESUME_STATUS = """
query RunResumeStatus ($project: String, $entity: String, $name: String!) {
    model(name: $project, entityName: $entity) {
        bucket(name: $name, missingOk: true) {
            summaryMetrics
            logLineCount
            historyLineCount
            eventsLineCount
            historyTail
        }
    }
}
"""


class SyncLog:
    """What wandb-core writes below WANDB_DIR while it syncs: a line of JSON per event, with ``sync_path``.

    This alone tells what has arrived: ``wandb sync`` answers 0, and writes its marker, after most failures.
    """

    FILES = "debug-sync*.log"
    SENDING = "filestream: sending request"  # with history_lines, uploaded_len, complete
    SENT = "filestream: request sent"  # acknowledges the SENDING before
    HTTP_ERROR = "api: HTTP error"  # with status
    NO_FILE = "file does not exist"  # with path
    #: Errors after which everything arrives nevertheless.
    HARMLESS = ("featurechecker:", "error adding file to cache", "sendAlert", "didn't print run URL")


class SyncCommand:
    """Arguments and output of ``wandb sync``; there is no interface for Python."""

    OPTIONS = ("--include-online", "--include-synced")
    PARALLEL = "-n"  # runs at a time
    PAGE = re.compile(r"\[(\S+)\] View run .*?\bat (\S+)$")  # entity/project/run_id, URL
    MARKS = (".synced", ".syncstate")  # of the files that it leaves beside a log
    #: Its retries, as variables for the settings ``x_…``. Left alone, it tries for sixteen minutes, and rows
    #: for seven days.
    BOUNDS = {  # noqa: RUF012  # a constant
        "WANDB_X_GRAPHQL_RETRY_MAX": "4",
        "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "1",
        "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "5",
        "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": "20",
        "WANDB_X_FILE_STREAM_RETRY_MAX": "5",
        "WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "1",
        "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "8",
        "WANDB_X_FILE_STREAM_TIMEOUT_SECONDS": "60",
        "WANDB_X_FILE_TRANSFER_RETRY_MAX": "5",
        "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MIN_SECONDS": "1",
        "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "8",
        "WANDB_ERROR_REPORTING": "false",
    }


#: Where wandb's service listens, and the process that started it: ``3-PID-unix-…``. Set by `wandb.init`.
SERVICE = "WANDB_SERVICE"
_STAGING = "WANDB_DATA_DIR"
_CACHE = "WANDB_CACHE_DIR"
_chosen_here: set[str] = set()  # values of it that `stage_below` has set
_OF_BEGINNINGS = ("run_name", "run_notes", "run_group", "run_job_type", "run_tags")
_FLUSH_SECONDS = 1.0  # what a killed process may lose; wandb's own choice is 15


def quiet_settings(number: int) -> dict[str, Any]:
    """Return settings for `wandb.init` of a run's segment *number*, from 1 on, many of them named ``x_…``.

    Nothing on the console, nothing collected that nobody asked for, and the log on disk within a second.
    wandb names the folders of segments by the second: without a suffix two of a run could share one.
    """
    return {
        "silent": True,
        "console": "off",
        "use_dot_wandb": False,
        "save_code": False,
        "disable_git": True,
        "disable_job_creation": True,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": _FLUSH_SECONDS,
        "x_sync_dir_suffix": f"{number}" if number > 1 else "",
    }


def leave_inherited_service() -> None:
    """Start a service of our own: one inherited from a parent process knows our run id as its own."""
    token = os.environ.get(SERVICE, "")
    if token and token.split("-")[1:2] != [str(os.getpid())]:
        del os.environ[SERVICE]


def stage_below(folder: str) -> None:
    """Let the files of artifacts wait in the run's *folder*, so that they go where the run goes.

    W&B keeps them in the user's home, and reads the variable whenever it copies one. Where several
    runs are open in a process, the last one's folder is taken; a WANDB_DATA_DIR of the user's stays.
    """
    if os.environ.get(_STAGING) in (None, *_chosen_here):
        _chosen_here.add(folder)
        os.environ[_STAGING] = folder


def keep_logs_below(folder: str) -> None:
    """Let W&B's service write its log in *folder* where the user has no cache: without one it logs to the terminal."""
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and f"{os.environ['HOME']}/.cache")
    if not os.environ.get(_CACHE):
        try:
            os.makedirs(f"{home or os.devnull}/wandb/logs", exist_ok=True)  # noqa: PTH103  # as the service does
        except OSError:
            os.environ[_CACHE] = folder


def has_active_run() -> bool:
    """Return whether a W&B run of this process is open (the singleton's `most_recent_active_run`)."""
    import wandb

    return wandb.setup().most_recent_active_run is not None


@contextmanager
def settings_of_beginnings_ignored() -> Iterator[None]:
    """Keep WANDB_NAME, WANDB_TAGS, … out of a run that has ended: they are meant for those that begin.

    They are in the singleton's settings, which `wandb.init` prefers to its own arguments.
    """
    import wandb

    settings = wandb.setup().settings
    kept = {name: getattr(settings, name) for name in _OF_BEGINNINGS}
    try:
        for name in kept:
            setattr(settings, name, None)
        yield
    finally:
        for name, value in kept.items():
            setattr(settings, name, value)


def kill_service() -> bool:
    """Kill the process of wandb's service, ``_connection._proc._process``, if one of ours is running.

    Left alone, it goes on uploading for days, even without us, while another segment goes on with the run.
    """
    import wandb

    connection = wandb.setup()._connection
    if connection is None or connection._proc is None:
        return False
    process = connection._proc._process
    process.kill()
    process.wait()
    return True


def add_reference(artifact: Artifact, name: str, uri: str, size: int, sha256: str) -> None:
    """Let *artifact* name the file at *uri* by size and SHA-256, as an ``ArtifactManifestEntry``.

    `Artifact.add_reference` would ask the store for digests that are known, and need its SDK and credentials.
    """
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    entry = ArtifactManifestEntry(path=name, ref=uri, digest=f"sha256:{sha256}", size=size)
    artifact.manifest.add_entry(entry)


def publish_artifact(run: Run, artifact: Artifact, aliases: Sequence[str]) -> None:
    """Write *artifact* to the log on disk, from where W&B uploads it when it can (``Run._interface``).

    `Run.log_artifact` asks the server first where the run is online: 19 seconds of the caller's time while
    it is away, then an exception. It also leaves the artifact out of the log on disk, so that no later sync
    could deliver what was not uploaded.
    """
    artifact.finalize()
    _interface(run).publish_artifact(run, artifact, aliases, None, **_HOW)


def deliver_artifact(run: Run, artifact: Artifact, aliases: Sequence[str], seconds: float) -> None:
    """Upload *artifact* of an online *run* and wait so many *seconds* for the server to commit it.

    Raises `LoggingError` if the server refuses it, `ConnectionError` if it has not taken it and may later. Then the
    log on disk does not have it.
    """
    artifact.finalize()
    handle = _interface(run).deliver_artifact(run, artifact, aliases, None, run.step, **_HOW)
    try:
        problem = str(handle.wait_or(timeout=seconds).response.log_artifact_response.error_message)
    except TimeoutError:
        problem = f"no answer for {seconds:.0f} s"
    except Exception as error:  # noqa: BLE001  # private classes: the service has gone
        problem = str(error) or type(error).__name__
    if problem:
        refused = _REFUSAL.search(problem)
        kind = LoggingError if refused is not None and refused.group(1) not in _TRANSIENT else ConnectionError
        raise kind(f"W&B has not taken the artifact {artifact.name.partition(':')[0]}: {problem}")


_HOW = {"is_user_created": False, "use_after_commit": False, "finalize": True}
_REFUSAL = re.compile(r"returned error (4\d\d)")  # in what the service answers
_TRANSIENT = ("408", "409", "425", "429")


def _interface(run: Run) -> Any:
    interface = run._interface
    if interface is None:
        raise RuntimeError("the W&B run has no service to log an artifact through")
    return interface
