"""Uploads to S3 that were begun and never completed: no listing of objects shows them, and they cost money.

GCS and Azure let theirs expire after a week; elsewhere what is cut off is a file, or nothing.
"""

import datetime
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from rl_research.errors import StorageError
from rl_research.storage import fsspec_private
from rl_research.storage.stalls import Progress
from rl_research.storage.transient import causes, status_of

_RIGHTS = {
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_parts": "s3:ListMultipartUploadParts",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
}


@dataclass(frozen=True)
class Unfinished:
    """An upload under way or cut off: what it was to become, its bytes so far, when the last were written.

    *size* is None where these credentials may not ask; *modified* is in seconds since 1970.
    """

    name: str
    upload_id: str
    size: int | None
    modified: float


async def find(fs: Any, root: str, progress: Progress) -> list[Unfinished]:
    """All of them below the prefix *root* of the S3 file system *fs*, by name."""
    bucket, key, _ = fs.split_path(root)
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    where = {"Bucket": bucket, "Prefix": prefix}
    found = []
    async for upload in _pages(fs, "list_multipart_uploads", "Uploads", where):
        progress.relative_update()
        if upload["Key"].startswith(prefix):
            found.append(await _described(fs, bucket, prefix, upload))
    return sorted(found, key=lambda upload: upload.name)


async def abort(fs: Any, path: str, upload_id: str) -> None:
    """End the upload *upload_id* to *path*, and free what it holds; one that is gone is fine."""
    bucket, key, _ = fs.split_path(path)
    try:
        await _ask(fs, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)
    except FileNotFoundError:
        return


async def _described(fs: Any, bucket: str, prefix: str, upload: Any) -> Unfinished:
    where = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    times, size = [upload["Initiated"]], 0
    try:
        async for part in _pages(fs, "list_parts", "Parts", where):
            times.append(part["LastModified"])
            size += part["Size"]
    except (StorageError, FileNotFoundError):  # not allowed to ask, or it has ended meanwhile
        return _upload(prefix, upload, None, times)
    return _upload(prefix, upload, size, times)


def _upload(prefix: str, upload: Any, size: int | None, times: list[datetime.datetime]) -> Unfinished:
    name = upload["Key"].removeprefix(prefix)
    return Unfinished(name, upload["UploadId"], size, max(times).timestamp())


async def _pages(fs: Any, method: str, of: str, where: Mapping[str, Any]) -> AsyncIterator[Any]:
    """Everything that *method* lists as *of*, page after page."""
    position: dict[str, Any] = {}
    while True:
        answer = await _ask(fs, method, **where, **position)
        for entry in answer.get(of, ()):
            yield entry
        if not answer.get("IsTruncated"):
            return
        position = {
            name.removeprefix("Next"): answer[name]
            for name in ("NextKeyMarker", "NextUploadIdMarker", "NextPartNumberMarker")
            if answer.get(name)
        }


async def _ask(fs: Any, method: str, **arguments: Any) -> Any:
    try:
        return await fsspec_private.call_s3(fs, method, **arguments)
    except PermissionError as error:
        if not any(status_of(cause)[1] == "AccessDenied" for cause in causes(error)):
            raise
        raise StorageError(f"these credentials lack the right {_RIGHTS[method]}") from None
