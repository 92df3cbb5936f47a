"""Where bytes live: data sets, checkpoints, programs.  The truth is always here; local disk elsewhere is a cache.

Keys are slash-separated paths of `[A-Za-z0-9._-]` parts, for example `models/digits/versions/3/model.onnx`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Blob:
    """What is stored under one key."""

    key: str
    size_bytes: int
    digest: str
    """"sha256:" and 64 hexadecimal digits."""


class BlobStore(Protocol):
    """Whole objects under keys.  An object appears at once and complete, or not at all; writing a key replaces it.

    Every method may raise StorageFull or OSError of the backend, and ValueError for what is not a key.  No key may be
    the folder of another.  Reading a missing key raises KeyError, but
    StoreAway, which is an OSError, where the store is not there to have it.
    """

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> Blob:
        """Store what `chunks` yields.  Nothing is left behind when the iterator raises or the call is cancelled."""
        ...

    async def put_file(self, key: str, path: Path) -> Blob:
        """Store a copy of a local file."""
        ...

    async def put_bytes(self, key: str, content: bytes) -> Blob:
        """Store a few bytes, such as a manifest."""
        ...

    async def get_bytes(self, key: str) -> bytes:
        """Return a small object whole."""
        ...

    def read(self, key: str, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        """Yield an object's bytes in order."""
        ...

    async def fetch(self, key: str, path: Path) -> Blob:
        """Copy an object to a local file, which appears complete or not at all, and return its digest."""
        ...

    async def local_path(self, key: str) -> Path | None:
        """A path that shows the object without a copy, read-only; None where the store has no such thing."""
        ...

    async def list(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, sorted."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; harmless when it is missing."""
        ...

    async def delete_all(self, prefix: str) -> None:
        """Remove every object whose key begins with `prefix`, which must end with a slash."""
        ...
