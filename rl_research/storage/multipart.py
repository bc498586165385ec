"""Files to an object store, several at once, and big ones to S3 in parts.

s3fs alone sends a file in waves, each waiting for its slowest part, reports whole parts only, and does not
end an upload that is cancelled.
"""

import asyncio
import errno
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rl_research.storage import fsspec_private
from rl_research.storage.clients import kind_of
from rl_research.storage.stalls import Body, Progress, all_or_first_error

PART = 8 << 20  # bytes
_AT_ONCE = 8  # parts and small files on their way, which bounds the memory, too
_AZURE_BLOCKS = 4  # of one file at a time; `clients` says how big they are
_MOST_PARTS = 10_000  # of one object, says S3
_ABORT_TIMEOUT = 5.0  # seconds for ending a broken upload on the server


async def put_files(fs: Any, files: Iterable[tuple[Path, str]], progress: Progress) -> None:
    """Copy each local file to its path in the asynchronous file system *fs*.

    Each appears when all of it has arrived, and of a broken upload nothing stays behind where the server
    can still be asked.
    """
    put = _put_to_s3 if kind_of(fs) == "s3" else _put_by_client
    slots = asyncio.Semaphore(_AT_ONCE)
    # biggest first: the server puts the parts of one together while it takes those of the next
    ordered = sorted(files, key=lambda file: file[0].stat().st_size, reverse=True)
    await all_or_first_error(put(fs, source, path, slots, progress) for source, path in ordered)


async def _put_by_client(fs: Any, source: Path, path: str, slots: asyncio.Semaphore, progress: Progress) -> None:
    put_file = fsspec_private.coroutine(fs, "put_file")
    options = {"gcs": {"chunksize": PART}, "azure": {"max_concurrency": _AZURE_BLOCKS}}.get(kind_of(fs) or "", {})
    async with slots:
        await put_file(str(source), path, callback=progress, **options)


async def _put_to_s3(fs: Any, source: Path, path: str, slots: asyncio.Semaphore, progress: Progress) -> None:
    bucket, key, _ = fs.split_path(path)
    call = partial(fsspec_private.call_s3, fs, Bucket=bucket, Key=key)
    size = source.stat().st_size
    if size > PART:
        await _put_parts(call, source, size, slots, progress)
        return
    async with slots:
        await call("put_object", Body=Body(await asyncio.to_thread(source.read_bytes), progress))


async def _put_parts(call: Any, source: Path, size: int, slots: asyncio.Semaphore, progress: Progress) -> None:
    length = max(PART, -(-size // _MOST_PARTS))
    upload_id = (await call("create_multipart_upload"))["UploadId"]

    async def send(number: int) -> dict[str, Any]:
        async with slots:
            body = Body(await asyncio.to_thread(_read, source, (number - 1) * length, length), progress)
            sent = await call("upload_part", UploadId=upload_id, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        parts = await all_or_first_error(send(number) for number in range(1, -(-size // length) + 1))
        try:
            await call("complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts})
        except FileNotFoundError as error:  # completed before, perhaps, by a request whose answer was lost
            raise ConnectionResetError(errno.ECONNRESET, f"{source.name}: its upload is not there any more") from error
    except BaseException:
        with suppress(Exception):  # the error that led here is the one to raise
            await asyncio.wait_for(call("abort_multipart_upload", UploadId=upload_id), _ABORT_TIMEOUT)
        raise


def _read(source: Path, start: int, length: int) -> bytes:
    with source.open("rb") as file:
        file.seek(start)
        return file.read(length)
