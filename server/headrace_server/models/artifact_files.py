"""Where the files of a version lie in the blob store: under `models/{model}/{token}/`, a token drawn for each."""

import re
from collections.abc import Sequence

from headrace_server.errors import InvalidModel
from headrace_server.models.folder import OfferedFile
from headrace_server.models.version import Artifact
from headrace_server.storage.blob_store import BlobStore

PREFIX = "models/"
_IS_KEY_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def prefix_of(model: str, token: str) -> str:
    """What the keys of all files of a version begin with."""
    return f"{PREFIX}{model}/{token}/"


async def store_files(store: BlobStore, model: str, token: str, files: Sequence[OfferedFile]) -> tuple[Artifact, ...]:
    """Copy files into the store; all of them, or none.  Raises InvalidModel for one that changes, StorageFull."""
    prefix = prefix_of(model, token)
    artifacts = []
    try:
        for index, file in enumerate(files):
            part = file.path if _IS_KEY_PART.fullmatch(file.path) else f"file-{index}"
            blob = await store.put_file(prefix + part, file.source)
            if blob.digest != file.digest:
                raise InvalidModel(f"{file.path} has changed while it was being read")
            artifacts.append(
                Artifact(
                    path=file.path,
                    format=file.format,
                    digest=blob.digest,
                    size_bytes=blob.size_bytes,
                    key=prefix + part,
                )
            )
    except BaseException:
        await store.delete_all(prefix)
        raise
    return tuple(artifacts)
