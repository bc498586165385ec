"""Connection failures: the errors that waiting may mend."""

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from rl_research.errors import RLResearchError

_ERRNO_NAMES = (
    "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR",
    "ENETDOWN", "ENETRESET", "ENETUNREACH", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT",
)  # fmt: skip
_TRANSIENT_ERRNO = frozenset(getattr(errno, name) for name in _ERRNO_NAMES if hasattr(errno, name))
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset({
    "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
    "ThrottlingException", "TooManyRequests",
})  # fmt: skip
_TRANSIENT_NAMES = frozenset({
    "aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError",
    "asyncio.TimeoutError",  # another class than TimeoutError before Python 3.11
    "azure.IncompleteReadError", "azure.ServiceRequestError", "azure.ServiceResponseError",
    "botocore.ConnectionError", "botocore.FlexibleChecksumError", "botocore.HTTPClientError",
    "botocore.IncompleteReadError", "botocore.MetadataRetrievalError", "botocore.ResponseParserError",
    "botocore.ResponseStreamingError",
    "fsspec.FSTimeoutError", "gcsfs.ChecksumError", "google.TransportError", "httpx.TransportError",
    "paramiko.NoValidConnectionsError", "paramiko.SSHException",
    "requests.ChunkedEncodingError", "requests.ConnectionError", "requests.ContentDecodingError", "requests.Timeout",
    "urllib3.ProtocolError", "urllib3.TimeoutError",
})  # fmt: skip
# What would be transient by its base.
_PERMANENT_NAMES = frozenset({"paramiko.AuthenticationException", "paramiko.BadHostKeyException"})
_PERMANENT_TEXTS = frozenset({"No authentication methods available"})  # a bare SSHException

_NEVER = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError)
_ALWAYS = (
    ConnectionError, TimeoutError, http.client.IncompleteRead, socket.gaierror, ssl.SSLEOFError, ssl.SSLZeroReturnError,
)  # fmt: skip


def is_transient(error: BaseException) -> bool:
    """Return whether *error* is a connection failure: one that waiting may mend.

    The outermost error that is known decides. Optional clients are recognised by the names of their
    exceptions, so none is imported.
    """
    return next((verdict for cause in causes(error) if (verdict := _verdict(cause)) is not None), False)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error*, then what it was raised from or while handling, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        hidden = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or hidden


def _verdict(error: BaseException) -> bool | None:
    """Return whether *error* is transient, None where it does not say and its cause has to be looked at."""
    if not isinstance(error, Exception) or isinstance(error, (RLResearchError, *_NEVER)):
        return False
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error)):
        return False  # it stays bad, though clients call it a connection error
    status, code = status_of(error)
    if status is not None or code in _TRANSIENT_CODES:
        return code in _TRANSIENT_CODES or status in _TRANSIENT_STATUS
    names = names_of(error)
    if _PERMANENT_NAMES.intersection(names) or str(error) in _PERMANENT_TEXTS:
        return False
    if isinstance(error, _ALWAYS) or _TRANSIENT_NAMES.intersection(names):
        return True
    if isinstance(error, OSError) and error.errno is not None and error.__cause__ is None:
        return error.errno in _TRANSIENT_ERRNO
    return None


def names_of(error: BaseException) -> list[str]:
    """Return the names of its classes, most special first, each with its package: ``botocore.ClientError``."""
    return [f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__]


def status_of(error: BaseException) -> tuple[int | None, str | None]:
    """Return the HTTP status and the service's own code that *error* carries, in each client's way."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status, response.get("Error", {}).get("Code")
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            value: Any = getattr(holder, name, None)
            number = int(value) if str(value).isdigit() else 0
            if 400 <= number < 600:
                code = getattr(error, "error_code", None)  # azure
                return number, None if code is None else str(getattr(code, "value", code))
    return None, None
