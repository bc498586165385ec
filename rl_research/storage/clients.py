"""Settings of each client library: it fails within seconds, and caches nothing that may change.

Left alone, s3fs, gcsfs and adlfs try again up to six times within each operation, unseen, and wait for
ever on a server that has stopped reading. Here each request is made again as `hiccups` says, and counted.
Options of the user's win over these.
"""

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rl_research.storage import fsspec_private, hiccups
from rl_research.storage.refusals import refusal
from rl_research.storage.transient import is_transient

_log = logging.getLogger(__name__)

_CONNECT = 10.0  # seconds until a connection has to stand
_EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "sftp": "sftp", "ssh": "sftp", "az": "azure",
    "abfs": "azure", "abfss": "azure",
}  # fmt: skip
READ_WITHIN_REQUESTS = {"gcs", "azure"}  # clients whose repeated requests include the answer's body
_BLOCK = 8 << 20  # bytes that come from Azure at a time, or are sent to it in one request
_PART = 1 << 20  # bytes of a bigger file that are sent to Azure at a time; it reports whole ones only


def schemes(url: str) -> list[str]:
    """Return the file systems that *url* names, outermost first: ``simplecache::s3://b`` names two, a path none."""
    parts = [part.partition("://")[0] for part in url.split("::")] if "://" in url or "::" in url else []
    return [part for part in parts if re.fullmatch(r"[A-Za-z0-9+.-]+", part)]


def extra_of(url: str) -> str | None:
    """Return the extra of this package that brings the client of *url*: s3, gcs, sftp or azure."""
    return next((_EXTRAS[scheme] for scheme in schemes(url) if scheme in _EXTRAS), None)


def kind_of(fs: Any) -> str | None:
    """Return the same of the file system *fs*."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return next((_EXTRAS[protocol] for protocol in protocols if protocol in _EXTRAS), None)


def crosses_network(url: str) -> bool:
    """Return whether *url* names a server of a kind that is known here."""
    return extra_of(url) is not None


def bounded(url: str, options: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Return *options* of the file systems in *url*, with bounds of *timeout* seconds where they set none."""
    outer, *inner = schemes(url) or [""]
    chained = {scheme: _merged(_bounds(scheme, timeout), options.get(scheme, {})) for scheme in inner}
    return _merged(
        _bounds(outer, timeout), {**options, **{scheme: given for scheme, given in chained.items() if given}}
    )


def prepare(fs: Any, timeout: float) -> None:
    """Let *fs*, and what it stands on, make requests again, and raise after *timeout* seconds of silence.

    Object stores are watched for progress instead; see `rl_research.storage.stalls`.
    """
    for link in _chain(fs):
        match kind_of(link):
            case "s3":
                link.retries = 1
                fsspec_private.repeat_s3_requests(link, hiccups.again_async)
            case "gcs":
                fsspec_private.repeat_gcsfs_requests(link, hiccups.again_async)
            case "azure":
                _prepare_azure(link)
            case "sftp":
                link.ftp.get_channel().settimeout(timeout)
        if link.async_impl and link.loop.get_exception_handler() is None:
            link.loop.set_exception_handler(_pass_over_refusals)


def _prepare_azure(fs: Any) -> None:
    """Change what adlfs does not pass on to Azure's client: its tries, and blocks that show progress.

    Its log has many lines for each request, and for each place where it has found no credentials.
    """
    if (log := logging.getLogger("azure")).level == logging.NOTSET:
        log.setLevel(logging.ERROR)
    config = fsspec_private.repeat_azure_requests(fs, hiccups.TRIES, hiccups.counted_pause)
    config.max_single_put_size = config.max_single_get_size = config.max_chunk_get_size = _BLOCK
    config.max_block_size = _PART


def _pass_over_refusals(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what a client's own task has left in *loop*, but for what the operation itself has raised.

    aiohttp forgets the task that writes a request where the connection is reset before it has begun, and
    Azure's client those of a file's other blocks; asyncio logs their tracebacks some time later.
    """
    error = context.get("exception")
    if error is not None and (is_transient(error) or refusal(error)):
        _log.debug("left by an operation that has ended: %r", error)
    else:
        loop.default_exception_handler(context)


def forget(fs: Any) -> None:
    """Let fsspec make *fs* anew next time; this one has lost its connection."""
    for link in _chain(fs):
        type(link).clear_instance_cache()


def _chain(fs: Any) -> Iterator[Any]:
    """Yield *fs*, and what it stands on: an archive, on the file system of its open file."""
    while fs is not None:
        yield fs
        fs = getattr(vars(fs).get("fo"), "fs", None)


def _bounds(scheme: str, timeout: float) -> dict[str, Any]:
    connect, read = min(_CONNECT, timeout), 2 * timeout  # a transfer that stands still is given up before that
    match _EXTRAS.get(scheme):
        case "s3":
            once = {"total_max_attempts": 1, "mode": "standard"}
            config = {"retries": once, "connect_timeout": connect, "read_timeout": read}
            # downloads in one piece, so that what has come is the file's beginning
            return {"config_kwargs": config, "use_listings_cache": False, "max_concurrency": 1}
        case "gcs":
            return {"use_listings_cache": False}
        case "azure":
            waits = {"connection_timeout": connect, "read_timeout": read}
            # of a download: blocks side by side that fail leave their errors to asyncio, which prints them
            return {**waits, "max_concurrency": 1, "use_listings_cache": False}
        case "sftp":
            return dict.fromkeys(("timeout", "banner_timeout", "auth_timeout", "channel_timeout"), connect)
    return {}


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, where they meet the second; mappings within are merged alike."""
    merged = {**ours, **theirs}
    for key in ours.keys() & theirs.keys():
        if isinstance(ours[key], Mapping) and isinstance(theirs[key], Mapping):
            merged[key] = _merged(ours[key], theirs[key])
    return merged
