"""Brings the program of a version to a local path, and makes sure that it is the one that was registered."""

import asyncio
import hashlib
import secrets
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from headrace_server.errors import ModelFailed
from headrace_server.models.version import Artifact, ArtifactFormat, ModelVersion
from headrace_server.storage.blob_store import BlobStore
from headrace_server.storage.file_state import FileState

MOST_DIGESTS = 1024


@dataclass(frozen=True, slots=True)
class Program:
    """A program on local disk."""

    path: Path
    digest: str
    copies: Path | None
    """The folder with its copy and its companions; None when it lies in the store itself."""


class Programs:
    """Programs of versions, fetched from the store when the store cannot show them."""

    def __init__(self, store: BlobStore, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch / "programs"
        self._digests: OrderedDict[FileState, str] = OrderedDict()

    async def fetch(self, version: ModelVersion, artifact: Artifact) -> Program:
        """Bring a program here.  Raises ModelFailed when it is missing or not what was registered, StorageFull."""
        companions = self._companions(version, artifact)
        try:
            if not companions and (path := await self._store.local_path(artifact.key)) is not None:
                _compare(version, artifact, await asyncio.to_thread(self._digest, path))
                return Program(path, artifact.digest, None)
            copies = self._scratch / secrets.token_hex(16)
            try:
                for file in (artifact, *companions):
                    blob = await self._store.fetch(file.key, copies / file.path)
                    _compare(version, file, blob.digest)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, copies, ignore_errors=True)
                raise
        except KeyError as error:
            raise ModelFailed(str(version.name), f"{error} is missing from the store") from error
        except OSError as error:
            raise ModelFailed(str(version.name), f"{artifact.path} cannot be read: {error.strerror}") from error
        return Program(copies / artifact.path, artifact.digest, copies)

    async def fetch_prepared(self, version: ModelVersion, key: str, digest: str) -> Program:
        """Bring a file here that was made of a program.  Raises ModelFailed when it is missing or damaged."""
        artifact = Artifact(
            path=key.rpartition("/")[2], format=ArtifactFormat.OTHER, digest=digest, size_bytes=0, key=key
        )
        return await self.fetch(version, artifact)

    async def release(self, program: Program) -> None:
        """Remove the copy of a program that is no longer loaded."""
        if program.copies is not None:
            await asyncio.to_thread(shutil.rmtree, program.copies, ignore_errors=True)

    def _digest(self, path: Path) -> str:
        """Of what lies there.  A file that was read before and has not been touched since is not read again."""
        file = FileState.of(path)
        digest = self._digests.get(file)
        if digest is None:
            with path.open("rb") as content:
                digest = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
            if FileState.of(path) == file:
                self._digests[file] = digest
                if len(self._digests) > MOST_DIGESTS:
                    self._digests.popitem(last=False)
        return digest

    def _companions(self, version: ModelVersion, artifact: Artifact) -> list[Artifact]:
        """The files that an ONNX program may look for beside it."""
        if artifact.format is not ArtifactFormat.ONNX:
            return []
        return [
            other
            for other in version.artifacts
            if other.format is ArtifactFormat.OTHER and Path(other.path).name == other.path
        ]


def _compare(version: ModelVersion, artifact: Artifact, digest: str) -> None:
    if digest != artifact.digest:
        raise ModelFailed(
            str(version.name), f"{artifact.path} in the store has the digest {digest}, registered was {artifact.digest}"
        )
