"""All that this package uses of fsspec and its clients beyond what they document, each name once.

Read in fsspec and s3fs 2026.9.0, gcsfs 2026.10.1 and adlfs 2026.8.0. When a release changes one of them,
``tests/test_fsspec_private.py`` fails.
"""

from collections.abc import Coroutine
from types import MethodType
from typing import Any

from fsspec.implementations.dirfs import DirFileSystem

_RETRIED_BY_GCSFS = ("_request", "_get_file_request", "_get_file_concurrent")  # each six times


def coroutine(fs: Any, operation: str) -> Any:
    """Return the coroutine function behind *operation*, such as ``_put_file`` behind ``put_file``.

    With it several operations run side by side, watched for progress, in the client's own event loop.
    """
    return getattr(fs, f"_{operation}")


def call_s3(fs: Any, method: str, **arguments: Any) -> Coroutine[Any, Any, Any]:
    """Call S3's own *method* with s3fs's credentials and errors; its public `call_s3` blocks the event loop.

    Multipart uploads in parallel, and the end of unfinished ones, depend on it.
    """
    found: Coroutine[Any, Any, Any] = fs._call_s3(method, **arguments)
    return found


def full_path(fs: DirFileSystem, path: str) -> str:
    """Return *path* as the file system below *fs* knows it, so that ``dir::`` can be passed by."""
    found: str = fs._join(path)
    return found


def azure_settings(fs: Any) -> Any:
    """Return Azure's settings for retries and block sizes, which adlfs does not pass on."""
    return fs.service_client._config


def switch_off_gcsfs_retries(fs: Any) -> None:
    """Let gcsfs try each request once: the decorator that repeats it has no switch."""
    for name in _RETRIED_BY_GCSFS:
        once = getattr(getattr(type(fs), name, None), "__wrapped__", None)
        if once is not None:
            setattr(fs, name, MethodType(once, fs))
