"""Refusals of a store: the reason and the remedy in a line."""

import errno
import re
import ssl

from rl_research.storage.transient import causes, names_of, status_of
from rl_research.system import masked

_DENIED = "access is denied"
_FULL = "the store is full"
_NO_BUCKET = "there is no such bucket"
_NOT_KNOWN = "these credentials are not accepted"
_EXPIRED = "the credentials have expired"
_NO_CREDENTIALS = "no credentials were found"
_REFUSED = "the request is refused"
_READ_ONLY = "the store is read-only"

_BY_CODE = {
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": "no bucket can have this name",
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidAccessKeyId": _NOT_KNOWN,
    "SignatureDoesNotMatch": _NOT_KNOWN,
    "InvalidToken": _NOT_KNOWN,
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "AccessDenied": _DENIED,
    "QuotaExceeded": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "EntityTooLarge": "the file is larger than the store takes",
    # Azure's
    "ContainerNotFound": _NO_BUCKET,
    "InvalidResourceName": "no bucket can have this name",
    "AuthenticationFailed": _NOT_KNOWN,
    "InvalidAuthenticationInfo": _NOT_KNOWN,
    "AccountIsDisabled": "the account is disabled",
}
_SAYS_FULL = re.compile(r"(?i)no space left|quota exceeded")  # in the words of an SFTP server
_BY_STATUS = {401: _NOT_KNOWN, 403: _DENIED, 507: _FULL}
_BY_ERRNO = {
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _READ_ONLY,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
}
_BY_NAME = {
    "botocore.NoCredentialsError": _NO_CREDENTIALS,
    "botocore.PartialCredentialsError": "only a part of the credentials was found",
    "botocore.ProfileNotFound": "there is no such profile",
    "botocore.EndpointResolutionError": "its endpoint is no URL",
    "botocore.InvalidRegionError": "there is no such region",
    "botocore.UnknownSignatureVersionError": "an option is not known",
    "botocore.ParamValidationError": "no bucket or object can have this name",
    "azure.ClientAuthenticationError": _NO_CREDENTIALS,
    "google.DefaultCredentialsError": _NO_CREDENTIALS,
    "google.RefreshError": _EXPIRED,
    "paramiko.BadHostKeyException": "the server's key is not the one that is known",
    "paramiko.AuthenticationException": _NOT_KNOWN,
    "paramiko.SSHException": _NO_CREDENTIALS,
    "builtins.FileNotFoundError": _NO_BUCKET,
    "builtins.PermissionError": _DENIED,
}
_SOURCES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine",
    "gcs": "`gcloud auth application-default login` or GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or "
    "AZURE_STORAGE_SAS_TOKEN, `az login`, or the identity of the machine",
    "sftp": "an SSH key or agent, or storage.options.password='${oc.env:NAME}'",
}


def refusal(error: BaseException, kind: str | None = None) -> str | None:
    """Return why a store refused, with the remedy; None if *error* is no refusal but a bug.

    *kind* is the extra of this package that brings its client: s3, gcs, sftp, azure, or None for another one.
    What the service itself has said counts before the kind of exception that a client made of it.
    """
    chain = list(causes(error))
    found = [judged for judge in (_by_answer, _by_kind) for e in chain if (judged := judge(e))]
    if not found:
        return None
    reason, details = found[0]
    details = " ".join(details.split())[:200]
    described = f"{reason} ({details})" if details and details not in reason else reason
    return masked(f"{described}. {_remedy(reason, kind)}")


def says_no_bucket(error: BaseException) -> bool:
    """Return whether the bucket is missing, not just an object in it."""
    codes = [status_of(cause)[1] for cause in causes(error)]
    return "NoSuchBucket" in codes or "ContainerNotFound" in codes


def _by_answer(error: BaseException) -> tuple[str, str] | None:
    status, code = status_of(error)
    if code in _BY_CODE:
        return _BY_CODE[code], code or ""
    if status is not None and 400 <= status < 600:
        return _BY_STATUS.get(status, _REFUSED), f"{status} {code or error}"
    return None


def _by_kind(error: BaseException) -> tuple[str, str] | None:
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the server's certificate is not accepted", error.verify_message or text
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        return "an option is not known", text.partition("() ")[2]
    if isinstance(error, ValueError) and text.startswith("Bad Request"):  # gcsfs
        return _REFUSED, text
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno], ""
    if isinstance(error, OSError) and (match := _SAYS_FULL.search(text)):
        return _FULL, match[0]
    if isinstance(error, OSError) and text.startswith("Forbidden"):  # gcsfs
        return _DENIED, text
    named = next((_BY_NAME[name] for name in names_of(error) if name in _BY_NAME), None)
    if named is not None:
        return named, "" if isinstance(error, OSError) else text
    if isinstance(error, OSError) and error.__cause__ is None:
        return _REFUSED, text or type(error).__name__
    return None


def _remedy(reason: str, kind: str | None) -> str:
    sources = _SOURCES.get(kind or "", "the client's own variables or storage.options")
    remedies = {
        _DENIED: f"Give these credentials the right to list, read, write and delete there, or use others: {sources}.",
        _NOT_KNOWN: f"Give others: {sources}.",
        _NO_CREDENTIALS: f"Give some: {sources}.",
        _EXPIRED: f"Log in again; they come from {sources}.",
        _FULL: "Free space or raise the quota there.",
        _READ_ONLY: "Give another storage.url, or make it writable.",
        _NO_BUCKET: "Make it, or correct storage.url.",
        "this machine's clock is wrong": "Set it.",
    }
    return remedies.get(reason, "Check storage.url and storage.options.")
