"""A store on a folder that refuses, damages or delays on demand."""

import asyncio
from pathlib import Path

from headrace_server.storage.blob_store import Blob
from headrace_server.storage.local import LocalBlobStore


class MoodyStore(LocalBlobStore):
    """Change its attributes to change its mood."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refusal: Exception | None = None
        """Raised by every put while it is set."""
        self.num_refusals = 0
        """How many more puts are refused; below zero: all."""
        self.num_damaged = 0
        """How many more files are stored with other bytes."""
        self.num_refused = 0
        self.may_put = asyncio.Event()
        self.may_put.set()

    async def put_file(self, key: str, path: Path) -> Blob:
        await self._obey()
        if self.num_damaged:
            self.num_damaged -= 1
            return await super().put_bytes(key, b"damaged")
        return await super().put_file(key, path)

    async def put_bytes(self, key: str, content: bytes) -> Blob:
        await self._obey()
        return await super().put_bytes(key, content)

    async def _obey(self) -> None:
        await self.may_put.wait()
        if self.refusal is not None and self.num_refusals:
            self.num_refusals -= 1
            self.num_refused += 1
            raise self.refusal
