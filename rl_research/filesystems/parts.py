"""Files to an object store, several parts of them at once.

s3fs alone sends a file in waves, each waiting for its slowest part, and Azure's client up to 128 parts at
once; here the parts of all files share one window, which bounds the memory, too.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rl_research.filesystems.patience import Progress, all_or_first_error

PART = 8 << 20  # bytes
_AT_ONCE = 8  # parts on their way
_MOST_PARTS = 10_000  # of one object, says S3
_LAST_WORD = 5.0  # seconds for telling the server that a broken upload is over


async def put_files(fs: Any, files: Iterable[tuple[Path, str]], progress: Progress) -> None:
    """Copy each local file to its path in the asynchronous file system *fs*."""
    window = asyncio.Semaphore(_AT_ONCE)
    kind = _InParts if hasattr(fs, "_call_s3") else _Whole
    kind = _InBlocks if hasattr(fs, "service_client") else kind
    copies = [kind(fs, source, path, window, progress) for source, path in files]
    await all_or_first_error([copy.send for copy in copies])


class _Whole:
    """One file, as the client itself sends it."""

    def __init__(
        self, fs: Any, source: Path, path: str, window: asyncio.Semaphore, progress: Progress
    ):
        self.fs, self.source, self.path = fs, source, path
        self.window, self.progress = window, progress

    async def send(self) -> None:
        """Send it; it appears when all of it has arrived."""
        own = _Share(self.progress)
        more = {"chunksize": PART} if hasattr(self.fs, "_call") else {}
        async with self.window:
            await self.fs._put_file(str(self.source), self.path, callback=own, **more)

    def _read(self, start: int, size: int) -> bytes:
        with self.source.open("rb") as file:
            file.seek(start)
            return file.read(size)

    async def _body(self, index: int, size: int) -> io.BytesIO:
        # no other name for the bytes: a buffer with a second owner is copied before it is sent
        return self.progress.body(await asyncio.to_thread(self._read, index * size, size))


class _Share(Progress):
    """The progress of one file of several."""

    def __init__(self, whole: Progress):
        super().__init__()
        self._whole = whole

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._whole.relative_update(inc)

    def absolute_update(self, value: int) -> None:
        self.relative_update(value - self.moved)


class _InParts(_Whole):
    """One file to S3: small ones by a single put, others by a multipart upload."""

    async def send(self) -> None:
        """Send it; it appears when all of it has arrived, and nothing of it stays behind otherwise."""
        size = self.source.stat().st_size
        bucket, key, _ = self.fs.split_path(self.path)
        self.where = {"Bucket": bucket, "Key": key}
        if size <= PART:
            async with self.window:
                await self._call("put_object", Body=self.progress.body(self._read(0, PART)))
            return
        part = _part_of(size)
        upload = await self._call("create_multipart_upload")
        self.where["UploadId"] = upload["UploadId"]
        try:
            tags = [""] * len(range(0, size, part))
            await all_or_first_error(
                [partial(self._send_part, index, part, tags) for index in range(len(tags))]
            )
            parts = [{"PartNumber": i, "ETag": tag} for i, tag in enumerate(tags, 1)]
            await self._call("complete_multipart_upload", MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(Exception):  # the error that led here is the one to tell
                await asyncio.wait_for(self._call("abort_multipart_upload"), _LAST_WORD)
            raise

    async def _send_part(self, index: int, size: int, tags: list[str]) -> None:
        async with self.window:
            body = await self._body(index, size)
            done = await self._call("upload_part", PartNumber=index + 1, Body=body)
        tags[index] = done["ETag"]

    async def _call(self, method: str, **arguments: Any) -> Any:
        return await self.fs._call_s3(method, **self.where, **arguments)


class _InBlocks(_Whole):
    """One file to Azure: small ones by a single put, others by blocks, which expire if they stay alone."""

    async def send(self) -> None:
        """Send it; it appears when all of it has arrived."""
        size = self.source.stat().st_size
        if size <= PART:
            await super().send()
            return
        from azure.storage.blob import BlobBlock

        part, (container, key, _) = _part_of(size), self.fs.split_path(self.path)
        names = [f"{index:05d}" for index in range(len(range(0, size, part)))]
        async with self.fs.service_client.get_blob_client(container, key) as blob:
            await all_or_first_error(
                [partial(self._send_block, blob, index, part, size) for index in range(len(names))]
            )
            await blob.commit_block_list([BlobBlock(name) for name in names])

    async def _send_block(self, blob: Any, index: int, part: int, size: int) -> None:
        async with self.window:
            body = await self._body(index, part)
            await blob.stage_block(f"{index:05d}", body, length=min(part, size - index * part))


def _part_of(size: int) -> int:
    return max(PART, -(-size // _MOST_PARTS))
