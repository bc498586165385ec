"""All that this package uses of fsspec and its clients beyond what they document, each name once.

Read in fsspec and s3fs 2026.9.0, gcsfs 2026.10.1 and adlfs 2026.8.0. When a release changes one of them,
``tests/test_fsspec_private.py`` fails.
"""

from collections.abc import Callable, Coroutine, Mapping
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


def repeat_s3_requests(fs: Any, again: Callable[..., Any]) -> None:
    """Let *again* make each request of s3fs, whose own repetitions are not counted; a body is sent from its start."""

    async def call_s3(self: Any, method: str, *arguments: Any, **more: Any) -> Any:
        def request() -> Any:
            if (body := more.get("Body")) is not None and hasattr(body, "seek"):
                body.seek(0)
            return type(self)._call_s3(self, method, *arguments, **more)

        return await again(request)

    fs._call_s3 = MethodType(call_s3, fs)


def repeat_azure_requests(fs: Any, tries: int, pause: Callable[[int, object], float]) -> Any:
    """Let Azure's client make each request *tries* times; return its settings, block sizes among them.

    *pause* is called with the number of the failed try and its error, and returns seconds.
    """
    settings = fs.service_client._config
    policy = settings.retry_policy
    policy.total_retries = policy.connect_retries = policy.read_retries = policy.status_retries = tries - 1

    def backoff(of: Mapping[str, Any]) -> float:
        last = of["history"][-1]
        return pause(of["count"], last.error or f"HTTP {last.http_response.status_code}")

    policy.get_backoff_time = backoff
    return settings


def repeat_gcsfs_requests(fs: Any, again: Callable[..., Any]) -> None:
    """Let *again* make each request of gcsfs; the decorator that repeats it has no switch."""
    for name in _RETRIED_BY_GCSFS:
        once = getattr(getattr(type(fs), name, None), "__wrapped__", None)
        if once is None:
            continue

        async def request(self: Any, *arguments: Any, _once: Any = once, **more: Any) -> Any:
            return await again(lambda: _once(self, *arguments, **more))

        setattr(fs, name, MethodType(request if name == "_request" else once, fs))
