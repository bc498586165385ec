"""Artifacts on their way to W&B, without its own `Run.log_artifact`.

Online that one asks the server before it hands the artifact on: 19 seconds of the caller's time while the
server is away, then an exception. It also leaves the artifact out of the log on disk, so that no later
sync could deliver what was not uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.errors import LoggingError

if TYPE_CHECKING:
    from wandb import Run

_REFUSED = re.compile(r"returned error (4\d\d)")
_LATER = ("408", "409", "425", "429")


def add_references(wandb: Any, artifact: Any, uri: str, files: Mapping[str, tuple[int, str]]) -> None:
    """Let *artifact* name *files* below *uri* by size and SHA-256.

    `Artifact.add_reference` would ask the store, and need its SDK and credentials, for digests that
    are known here.
    """
    entry_type = wandb.sdk.artifacts.artifact_manifest_entry.ArtifactManifestEntry
    base = uri.rstrip("/") if "://" in uri else Path(uri).absolute().as_uri()
    for name, (size, digest) in files.items():
        entry = entry_type(path=name, ref=f"{base}/{name}", digest=f"sha256:{digest}", size=size)
        artifact.manifest.add_entry(entry)


def log(run: Run, artifact: Any, aliases: Sequence[str], wait: float = 0.0) -> None:
    """Log *artifact* under *aliases* and ``latest``.

    It is written to the log on disk, from where W&B uploads it online when it can. Only if the run is
    online and *wait* is given, the server itself has to have it within so many seconds: `ConnectionError`
    if it has not and may later, `LoggingError` if it refuses. Then the log on disk does not have it:
    call again, with or without *wait*. The same content is stored once.
    """
    artifact.finalize()
    names = list(dict.fromkeys(["latest", *aliases]))
    how = {"is_user_created": False, "use_after_commit": False, "finalize": True}
    interface: Any = run._interface  # what the run itself speaks to W&B's service through
    if not wait or run.offline:
        interface.publish_artifact(run, artifact, names, None, **how)
        return
    handle = interface.deliver_artifact(run, artifact, names, None, run.step, **how)
    if problem := _problem(handle, wait):
        text = f"W&B has not taken the artifact {artifact.name}: {problem}"
        refused = _REFUSED.search(problem)
        raise (LoggingError if refused and refused.group(1) not in _LATER else ConnectionError)(text)


def _problem(handle: Any, seconds: float) -> str:
    """Why the server has not committed the artifact of *handle*; empty if it has."""
    try:
        answer = handle.wait_or(timeout=seconds).response.log_artifact_response
    except TimeoutError:
        return f"no answer for {seconds:.0f} s"
    except Exception as error:  # noqa: BLE001  # private classes: the service has gone
        return str(error) or type(error).__name__
    return str(answer.error_message)
