"""How a checkpoint lies in the store: a folder of files, and a manifest that is written last and names them all.

    checkpoints/{job}/{step, 12 digits}-{first 16 digits of the manifest's digest}/weights.safetensors …
    checkpoints/{job}/{step}-{digits}/manifest.json

The folder's name vouches for the manifest, the manifest for every file.  Knows no trainer.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace_server.storage.blob_store import BlobStore

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"((?:[^/]+/)*?(\d{12})-[0-9a-f]{16}/)")


class Damaged(OSError):
    """What came out is not what went in."""


class CheckpointFile(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Relative to the checkpoint's folder, with slashes."""
    digest: str
    size_bytes: int


class CheckpointManifest(BaseModel):
    """What a checkpoint consists of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    is_best: bool
    files: tuple[CheckpointFile, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size_bytes for file in self.files)

    def content(self) -> bytes:
        """The manifest as it is stored; the same for the same checkpoint."""
        return self.model_dump_json(indent=1).encode()


@dataclass(frozen=True, slots=True, order=True)
class StoredCheckpoint:
    """A folder of the store that holds a checkpoint, or what is there of it."""

    step: int
    folder: str
    """The key of the folder, ending with a slash."""

    @property
    def manifest_key(self) -> str:
        """Where its manifest lies, if it is complete."""
        return f"{self.folder}{MANIFEST}"

    @classmethod
    def of(cls, prefix: str, manifest: CheckpointManifest) -> "StoredCheckpoint":
        """Where a checkpoint goes, below `prefix`."""
        digits = hashlib.sha256(manifest.content()).hexdigest()[:16]
        return cls(manifest.step, f"{prefix}{manifest.step:012}-{digits}/")

    @classmethod
    def parse(cls, key: str) -> "StoredCheckpoint | None":
        """The folder that a key lies in; None for a key that belongs to no checkpoint."""
        match = _FOLDER.match(key)
        return cls(int(match[2]), match[1]) if match else None

    async def manifest(self, store: BlobStore) -> CheckpointManifest:
        """Read its manifest.  Raises KeyError for an incomplete checkpoint, Damaged, OSError."""
        content = await store.get_bytes(self.manifest_key)
        if not self.folder.endswith(f"-{hashlib.sha256(content).hexdigest()[:16]}/"):
            raise Damaged(f"{self.manifest_key} is not what was written")
        try:
            return CheckpointManifest.model_validate_json(content)
        except ValidationError as error:
            raise Damaged(f"{self.manifest_key} is no manifest") from error

    async def remove(self, store: BlobStore) -> None:
        """Remove it; first the manifest, so that it is never taken for complete meanwhile."""
        await store.delete(self.manifest_key)
        await store.delete_all(self.folder)


async def list_checkpoints(store: BlobStore, prefix: str) -> list[StoredCheckpoint]:
    """All checkpoint folders below `prefix`, complete or not, the one of the last step first."""
    found = {StoredCheckpoint.parse(key[len(prefix) :]) for key in await store.list(prefix)}
    return sorted((StoredCheckpoint(each.step, prefix + each.folder) for each in found if each), reverse=True)


def choose_kept(
    complete: Mapping[StoredCheckpoint, bool], *, keep_last: int, keep_best: int
) -> frozenset[StoredCheckpoint]:
    """Which of the complete checkpoints are kept; for each, whether it was the best when it was evaluated.

    The newest `keep_last`, and the newest `keep_best` of those that were the best.
    """
    newest = sorted(complete, reverse=True)
    best = [checkpoint for checkpoint in newest if complete[checkpoint]]
    return frozenset(newest[:keep_last]) | frozenset(best[:keep_best])


def describe_folder(
    folder: Path, step: int, is_best: bool, digests: Mapping[str, str] | None = None
) -> CheckpointManifest:
    """Read a local checkpoint folder and work out its manifest.  Blocks.

    Files in `digests` are not read: whoever made them says what they must be.
    Raises OSError, and ValueError when it cannot be one: no files, one with the manifest's name, an odd step.
    """
    if not 0 <= step < 10**12:
        raise ValueError(f"{step} is no step")
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(folder).as_posix()
            known = (digests or {}).get(name)
            digest, size_bytes = digest_of(path) if known is None else (known, path.stat().st_size)
            files.append(CheckpointFile(path=name, digest=digest, size_bytes=size_bytes))
    if not files:
        raise ValueError(f"{folder.name} holds no files")
    if any(file.path == MANIFEST for file in files):
        raise ValueError(f"{folder.name} holds a file called {MANIFEST}, which is ours to write")
    return CheckpointManifest(step=step, is_best=is_best, files=tuple(files))


def digest_of(path: Path) -> tuple[str, int]:
    """The digest and the size of a file.  Blocks."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"sha256:{digest}", file.tell()
