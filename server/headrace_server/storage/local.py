"""Objects as files below one folder.  Several processes may use the folder at once.

    <root>/layout.json      which layout this is
    <root>/objects/<key>    the objects, read-only
    <root>/drafts/          objects that are being written
    <root>/trash/           folders that are being deleted

Knows nothing of what the objects mean.  A key cannot also be the folder of another key.
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import structlog

from headrace_server.errors import CannotStart, StorageFull, StoreAway
from headrace_server.storage.atomic_file import AtomicFile, remove_dead_drafts, sync_folder
from headrace_server.storage.blob_store import Blob, BlobStore
from headrace_server.storage.streaming import BLOCK_BYTES, read_file, write_file

LAYOUT = 1
LONGEST_KEY = 1024
LONGEST_PART = 255
_ABSENCES = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PART = re.compile(r"[A-Za-z0-9._-]+")

log = structlog.get_logger()


class LocalBlobStore(BlobStore):
    """A BlobStore on a folder.

    Disk work runs in the bounded threads that asyncio keeps, and a call holds about one block in memory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = root / "objects"
        self._drafts = root / "drafts"
        self._trash = root / "trash"

    async def open(self) -> None:
        """Make the folders and remove what writers and deleters have left behind that died.

        Raises CannotStart when the folder cannot be used, or has the layout of a newer release.
        """
        await asyncio.to_thread(self._open)

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> Blob:
        """Store what `chunks` yields.  A call cancelled at its very end may have stored all of it, never a part."""
        file = AtomicFile(self._object(key), self._drafts, home=self._objects)
        size_bytes, digest = await write_file(file, chunks)
        return Blob(key, size_bytes, digest)

    async def put_file(self, key: str, path: Path) -> Blob:
        """Store a copy of a local file."""
        async with contextlib.aclosing(read_file(path, BLOCK_BYTES)) as chunks:
            return await self.put(key, chunks)

    async def put_bytes(self, key: str, content: bytes) -> Blob:
        """Store a few bytes, such as a manifest."""
        return await self.put(key, _once(content))

    async def get_bytes(self, key: str) -> bytes:
        """Return a small object whole."""
        try:
            return await asyncio.to_thread(self._object(key).read_bytes)
        except _ABSENCES as error:
            raise await asyncio.to_thread(self._absence, key) from error

    async def read(self, key: str, chunk_bytes: int = BLOCK_BYTES) -> AsyncGenerator[bytes, None]:
        """Yield an object's bytes in order, as they are at the first step: replacing or deleting it does not matter."""
        async with contextlib.aclosing(read_file(self._object(key), chunk_bytes)) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
            except _ABSENCES as error:
                raise await asyncio.to_thread(self._absence, key) from error

    async def fetch(self, key: str, path: Path) -> Blob:
        """Copy an object to a local file, which appears complete or not at all, and return its digest."""
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        async with contextlib.aclosing(self.read(key)) as chunks:
            size_bytes, digest = await write_file(AtomicFile(path, path.parent), chunks, mode=0o644)
        return Blob(key, size_bytes, digest)

    async def local_path(self, key: str) -> Path | None:
        """The object itself.  Open it to keep it: a path does not protect it from being deleted."""
        path = self._object(key)
        if not await asyncio.to_thread(path.is_file):
            raise await asyncio.to_thread(self._absence, key)
        return path

    async def list(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, sorted."""
        folder = _checked_folder(prefix)
        return await asyncio.to_thread(lambda: sorted(key for key in self._keys(folder) if key.startswith(prefix)))

    async def delete(self, key: str) -> None:
        """Remove an object; harmless when it is missing."""
        await asyncio.to_thread(self._delete, self._object(key))

    async def delete_all(self, prefix: str) -> None:
        """Remove every object whose key begins with `prefix`, which must end with a slash; all at once."""
        assert prefix.endswith("/"), prefix
        await asyncio.to_thread(self._delete_folder, self._object(prefix.removesuffix("/")))

    def _open(self) -> None:
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self._drafts, self._trash):
                folder.mkdir(exist_ok=True)
            self._check_layout()
            self._objects.mkdir(exist_ok=True)
            num_drafts = remove_dead_drafts(self._drafts)
            trash = list(self._trash.iterdir())
            for folder in trash:
                shutil.rmtree(folder, ignore_errors=True)
            sync_folder(self._root)
        except OSError as error:
            raise CannotStart(f"the store {self._root} cannot be used: {error.strerror}") from error
        except StorageFull as error:
            raise CannotStart(f"the store {self._root} cannot be used: the disk is full") from error
        if num_drafts or trash:
            log.info("storage.leftovers_removed", drafts=num_drafts, folders=len(trash))

    def _check_layout(self) -> None:
        marker = self._root / "layout.json"
        try:
            layout = json.loads(marker.read_bytes())["layout"]
        except FileNotFoundError:
            file = AtomicFile(marker, self._drafts)
            try:
                file.write([json.dumps({"layout": LAYOUT}).encode()])
                file.publish()
            finally:
                file.discard()
            return
        except (ValueError, KeyError, TypeError) as error:
            raise CannotStart(
                f"{marker} is damaged; put back {json.dumps({'layout': LAYOUT})} if this is a store"
            ) from error
        if layout != LAYOUT:
            raise CannotStart(
                f"the store {self._root} was written by a newer release (layout {layout}; this one knows {LAYOUT}): "
                "install that release, or open another data folder"
            )

    def _object(self, key: str) -> Path:
        return self._objects.joinpath(*_checked_parts(key))

    def _keys(self, folder: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(self._objects / folder))
        except (FileNotFoundError, NotADirectoryError):
            self._check_presence()
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._keys(f"{folder}{entry.name}/")
            else:
                yield f"{folder}{entry.name}"

    def _delete(self, path: Path) -> None:
        try:
            path.unlink()
        except _ABSENCES:
            self._check_presence()
            return
        sync_folder(path.parent)
        self._prune(path.parent)

    def _delete_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._check_presence()
            return
        grave = self._trash / secrets.token_hex(16)
        try:
            folder.rename(grave)
        except FileNotFoundError:
            return
        sync_folder(folder.parent)
        shutil.rmtree(grave, ignore_errors=True)
        self._prune(folder.parent)

    def _absence(self, key: str) -> Exception:
        """What to raise about an object that is not there: it is missing, unless the whole store is."""
        try:
            self._check_presence()
        except StoreAway as error:
            return error
        return KeyError(key)

    def _check_presence(self) -> None:
        """Raise StoreAway when the folder is not that of a store any more, as when it was on a disk that is gone."""
        if not self._objects.is_dir():
            raise StoreAway

    def _prune(self, folder: Path) -> None:
        """Remove folders that have become empty.  Writers make theirs again if they lose this race."""
        while folder != self._objects:
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise
                return
            folder = folder.parent


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _checked_parts(key: str) -> list[str]:
    parts = key.split("/")
    for part in parts:
        if not _PART.fullmatch(part) or part in (".", "..") or len(part) > LONGEST_PART:
            raise ValueError(
                f"{key[: 2 * LONGEST_PART]!r} is not a key: {part[: 2 * LONGEST_PART]!r} may not be a part of one"
            )
    if len(key) > LONGEST_KEY:
        raise ValueError(f"a key has at most {LONGEST_KEY} characters, not {len(key)}")
    return parts


def _checked_folder(prefix: str) -> str:
    """The part of a prefix up to its last slash, which is a folder."""
    folder, slash, _ = prefix.rpartition("/")
    if slash:
        _checked_parts(folder)
    return folder + slash
