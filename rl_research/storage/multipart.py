"""Files to an object store, several parts of them at once.

s3fs alone sends a file in waves, each waiting for its slowest part, and Azure's client up to 128 parts at
once; here the parts of all files stand in one row, which bounds the memory, too.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rl_research.storage import fsspec_private
from rl_research.storage.stalls import Body, Progress, all_or_first_error

PART = 8 << 20  # bytes
_AT_ONCE = 8  # parts on their way
_MOST_PARTS = 10_000  # of one object, says S3
_LAST_WORD = 5.0  # seconds for telling the server that a broken upload is over

_Step = Callable[[Body], Awaitable[None]]  # with the memory of whoever does it


async def put_files(fs: Any, files: Iterable[tuple[Path, str]], progress: Progress) -> None:
    """Copy each local file to its path in the asynchronous file system *fs*.

    Each appears when all of it has arrived, and of a broken upload nothing stays behind where the server
    can still be told.
    """
    kind = _InParts if fsspec_private.is_s3(fs) else _Whole
    kind = _InBlocks if hasattr(fs, "service_client") else kind
    copies = [kind(fs, source, path, progress) for source, path in files]
    # biggest first: the server puts the parts of one together while it takes those of the next
    copies.sort(key=lambda copy: copy.size, reverse=True)
    row = (step for copy in copies for step in copy.steps())

    async def worker() -> None:
        body = Body(progress)
        for step in row:
            await step(body)

    try:
        await all_or_first_error([worker] * _AT_ONCE)
    except BaseException:
        await asyncio.gather(*[copy.give_up() for copy in copies])
        raise


class _Whole:
    """One file, as the client itself sends it."""

    def __init__(self, fs: Any, source: Path, path: str, progress: Progress):
        self.fs, self.source, self.path, self.progress = fs, source, path, progress
        self.size = source.stat().st_size

    def steps(self) -> Iterator[_Step]:
        """Yield the coroutines that send the file; they may run side by side."""
        yield self._send_whole

    async def give_up(self) -> None:
        """Undo what was begun and will not be ended."""

    async def _send_whole(self, _body: Body) -> None:
        more = {"chunksize": PART} if fsspec_private.has_chunks(self.fs) else {}
        share = _Share(self.progress)
        put_file = fsspec_private.coroutine(self.fs, "put_file")
        await put_file(str(self.source), self.path, callback=share, **more)


class _Share(Progress):
    """Progress of one file of several."""

    def __init__(self, whole: Progress):
        super().__init__()
        self._whole = whole

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._whole.relative_update(inc)

    def absolute_update(self, value: int) -> None:
        self.relative_update(value - self.moved)


class _Parted(_Whole, ABC):
    """One file, in parts if it is big: the first to be sent begins the upload, the last to arrive ends it."""

    def __init__(self, fs: Any, source: Path, path: str, progress: Progress):
        super().__init__(fs, source, path, progress)
        self.part = max(PART, -(-self.size // _MOST_PARTS))
        self.count = -(-self.size // self.part)
        self._beginning: asyncio.Future[None] | None = None
        self._begun, self._left = False, self.count

    def steps(self) -> Iterator[_Step]:
        if self.size <= PART:
            yield self._send_whole
        else:
            yield from (partial(self._send, index) for index in range(self.count))

    async def give_up(self) -> None:
        if self._begun:
            with suppress(Exception):  # the error that led here is the one to tell
                await asyncio.wait_for(self._abort(), _LAST_WORD)

    async def _send(self, index: int, body: Body) -> None:
        if self._beginning is None:
            self._beginning = asyncio.ensure_future(self._begin_once())
        await self._beginning  # by all of them: what cannot be begun is not begun again
        await self._send_part(index, body)
        self._left -= 1
        if not self._left:
            await self._complete()
            self._begun = False

    async def _begin_once(self) -> None:
        await self._begin()
        self._begun = True

    async def _filled(self, body: Body, index: int) -> Body:
        start = index * self.part
        size = min(self.part, self.size - start)
        await asyncio.to_thread(body.fill, self.source, start, size)
        return body

    @abstractmethod
    async def _begin(self) -> None: ...

    @abstractmethod
    async def _send_part(self, index: int, body: Body) -> None: ...

    @abstractmethod
    async def _complete(self) -> None: ...

    @abstractmethod
    async def _abort(self) -> None: ...


class _InParts(_Parted):
    """One file to S3: a small one by a single put, another by a multipart upload."""

    def __init__(self, fs: Any, source: Path, path: str, progress: Progress):
        super().__init__(fs, source, path, progress)
        bucket, key, _ = fs.split_path(path)
        self._where = {"Bucket": bucket, "Key": key}
        self._tags = [""] * self.count

    async def _send_whole(self, body: Body) -> None:
        await self._call("put_object", Body=await self._filled(body, 0))

    async def _begin(self) -> None:
        upload = await self._call("create_multipart_upload")
        self._where["UploadId"] = upload["UploadId"]

    async def _send_part(self, index: int, body: Body) -> None:
        filled = await self._filled(body, index)
        done = await self._call("upload_part", PartNumber=index + 1, Body=filled)
        self._tags[index] = done["ETag"]

    async def _complete(self) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(self._tags, 1)]
        await self._call("complete_multipart_upload", MultipartUpload={"Parts": parts})

    async def _abort(self) -> None:
        await self._call("abort_multipart_upload")

    async def _call(self, method: str, **arguments: Any) -> Any:
        return await fsspec_private.call_s3(self.fs, method, **self._where, **arguments)


class _InBlocks(_Parted):
    """One file to Azure: a small one by a single put, another by blocks, which expire if they stay alone."""

    async def _begin(self) -> None:
        container, key, _ = self.fs.split_path(self.path)
        self._blob = self.fs.service_client.get_blob_client(container, key)
        await self._blob.__aenter__()

    async def _send_part(self, index: int, body: Body) -> None:
        length = min(self.part, self.size - index * self.part)
        await self._blob.stage_block(_block(index), await self._filled(body, index), length=length)

    async def _complete(self) -> None:
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(_block(index)) for index in range(self.count)]
        await self._blob.commit_block_list(blocks)
        await self._blob.close()

    async def _abort(self) -> None:
        await self._blob.close()


def _block(index: int) -> str:
    return f"{index:05d}"
