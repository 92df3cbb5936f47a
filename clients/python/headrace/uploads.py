"""What an upload sends: a file, bytes, or arrays packed as .npz; read in chunks, off the loop, as often as needed.

Knows no call.  Arrays are packed the same way each time, so equal arrays are equal bytes and the same version.
"""

import asyncio
import hashlib
import os
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

Source: TypeAlias = str | os.PathLike[str] | bytes | Mapping[str, ArrayLike]

CHUNK_BYTES = 1 << 20
MEMORY_BYTES = 64 << 20
"""Packed arrays larger than this wait on disk."""


class Content:
    """What is sent, opened."""

    def __init__(self, file: IO[bytes], file_name: str, digest: str) -> None:
        self._file = file
        self.file_name = file_name
        """Its ending tells the format; empty for bytes."""
        self.digest = digest
        """"sha256:" and 64 hexadecimal digits."""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """All bytes from the beginning, each time."""
        await asyncio.to_thread(self._file.seek, 0)
        while chunk := await asyncio.to_thread(self._file.read, CHUNK_BYTES):
            yield chunk


@asynccontextmanager
async def open_content(source: Source) -> AsyncIterator[Content]:
    """Open a source.  Raises OSError for a file that cannot be read, and ValueError for arrays that hold objects."""
    file, file_name = await asyncio.to_thread(_open, source)
    try:
        yield Content(file, file_name, await asyncio.to_thread(_digest, file))
    finally:
        file.close()


def _open(source: Source) -> tuple[IO[bytes], str]:
    if isinstance(source, Mapping):
        return _pack(source), "arrays.npz"
    if isinstance(source, bytes):
        return BytesIO(source), ""
    path = Path(source)
    return path.open("rb"), path.name


def _pack(arrays: Mapping[str, ArrayLike]) -> IO[bytes]:
    if not arrays:
        raise ValueError("there is no array to upload")
    file = SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - closed by whoever opened the content
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in sorted(arrays):
                array = np.asanyarray(arrays[name])
                if array.dtype.hasobject:
                    raise ValueError(f"the array {name!r} holds Python objects; make it numbers or text (dtype=str)")
                # A fixed date, unlike np.savez: the same arrays are the same bytes.
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
    except BaseException:
        file.close()
        raise
    return file


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]  # any readable will do
