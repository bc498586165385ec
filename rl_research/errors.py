"""What can go wrong, and whom it concerns.

* RLResearchError
  - ConfigError              the experiment is described wrongly            (the user; exit code 2)
  - LoggingError             a value that cannot be logged as it was given  (the user; exit code 2)
  - CheckpointError
    · CheckpointMissing      nothing at that path or URL                    (the user; exit code 2)
    · CheckpointDamaged      bytes differ from what the manifest promises   (the user; exit code 2)
  - StorageError             the store refused: rights, bucket, disk        (the user; exit code 2)
    · RunTakenOver           another machine has gone on with the run       (nobody; exit code 2)
  - CannotRender             the environment draws no picture here          (a warning: a run needs no film)
  - Diverged                 parameters or losses became NaN or infinite    (the user; exit code 2)
  - EnvironmentFault         the environment returns what cannot be used    (the user; exit code 2)
  - EnvironmentFailed        the environment raised, or its process died    (the user; exit code 1)
  - StudyUnfinished          members of a study have failed                 (the user; exit code 1)
  - Interrupted              a signal asked the run to stop; it is committed and resumes (exit code 75)

Connection failures are none of these: they keep the type their library gave them, and
`rl_research.storage.store.is_transient` tells them apart. Whatever else leaves the library is a bug and
shows its traceback.
"""

from collections.abc import Mapping
from typing import Any

_LINE = 600  # characters


class RLResearchError(Exception):
    """Base of every error that this package raises on purpose; its text says what to do."""

    exit_code = 2

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConfigError(RLResearchError):
    """Raised when the experiment is described wrongly."""


class LoggingError(RLResearchError, ValueError):
    """Raised when a metric, image, video or model cannot be logged as it was given."""


class CheckpointError(RLResearchError):
    """Base of the errors of checkpoints."""


class CheckpointMissing(CheckpointError):
    """Raised when there is no checkpoint at that path or URL."""


class CheckpointDamaged(CheckpointError):
    """Raised when the bytes found differ from what the manifest promises."""


class StorageError(RLResearchError):
    """Raised when a store refuses an operation for a reason that waiting does not mend."""


class RunTakenOver(StorageError):
    """Raised when another process has gone on with the run, because this one could not reach the store."""


class CannotRender(RLResearchError):
    """Raised when an environment fails to draw a picture; no reason to lose a run."""


class Diverged(RLResearchError):
    """Raised when training has produced what is no number; nothing of it is committed."""


class EnvironmentFault(RLResearchError):
    """Raised when an environment returns what no algorithm can learn from, such as NaN."""


class EnvironmentFailed(RLResearchError):
    """Raised when an environment has raised an error of its own, or the process that it lives in has died.

    *trace* is the traceback below the environment, empty where there is none. The error itself is no cause of
    this one: a simulator's broken connection is no failure of storage, which would be retried.
    """

    exit_code = 1

    def __init__(self, message: str, trace: str = ""):
        super().__init__(message, trace)
        self.trace = trace


class StudyUnfinished(RLResearchError):
    """Raised when a study has come to its end and members of it have not; *result* is what it came to."""

    exit_code = 1

    def __init__(self, message: str, result: Mapping[str, Any]):
        super().__init__(message, result)
        self.result = result


class Interrupted(RLResearchError):
    """Raised at a rollout boundary after a signal asked the run to stop and it was committed.

    75 is EX_TEMPFAIL of sysexits.h: "temporary failure, the user is invited to retry".
    """

    exit_code = 75


def in_a_line(error: object) -> str:
    """Return what *error* says, in one line; some clients answer in whole paragraphs."""
    text = " ".join(str(error).split())
    return (text if len(text) <= _LINE else f"{text[:_LINE]} …") or type(error).__name__
