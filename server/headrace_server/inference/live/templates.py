"""The templates of jobs: made on the first question, kept in the store, and turned into programs.

    snapshots/{job}/template/{release}/model.onnx, template.json     made once
    snapshots/{job}/programs/{digits}/model.onnx                     one for each checkpoint that is being served

A template is kept as long as the store; programs are removed by whoever asked for them.
"""

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import ValidationError

from headrace_server import __version__
from headrace_server.errors import DatasetNotFound, InvalidModel, ModelFailed, ModelLoading
from headrace_server.inference.live.jobs import Jobs
from headrace_server.inference.live.template_maker import TemplateMaker
from headrace_server.models.onnx_weights import put_weights
from headrace_server.models.version import Artifact, ArtifactFormat
from headrace_server.storage.blob_store import Blob, BlobStore
from headrace_server.tensors import Signature
from headrace_server.trainers.live_job import LiveJob
from headrace_server.trainers.template import PROGRAM, TEMPLATE, Template, TemplateOrder

PREFIX = "snapshots/"
WEIGHTS = "weights.safetensors"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MadeProgram:
    """A program in the store, with the weights of one checkpoint in it."""

    signature: Signature
    artifact: Artifact
    folder: str
    """The key below which it lies alone."""


class Templates:
    """Makes programs of checkpoints.  `scratch` is a folder for what is under way."""

    def __init__(self, jobs: Jobs, store: BlobStore, maker: TemplateMaker, scratch: Path) -> None:
        self._jobs = jobs
        self._store = store
        self._maker = maker
        self._scratch = scratch / "snapshots"
        self._turn = asyncio.Lock()

    async def sweep(self) -> None:
        """Remove the programs that an earlier process has left; templates stay."""
        for key in await self._store.list(PREFIX):
            if key.split("/")[2:3] == ["programs"]:
                await self._store.delete(key)

    async def prepare(self, name: str, job: LiveJob) -> None:
        """Make the template of a job, if there is none yet; one is made at a time.

        Raises ModelFailed, which names `name`, StorageFull, or OSError.
        """
        if await self._stored(job) is not None:
            return
        async with self._turn, self._folder() as folder:
            await self._make(name, job, folder)

    async def program(self, name: str, job: LiveJob, weights: Blob) -> MadeProgram:
        """Put the weights of a checkpoint into the job's template, which is prepared.

        Raises KeyError when the weights are not kept any more, ModelFailed, which names `name`, when they do not fit,
        StorageFull, or OSError.
        """
        async with self._folder() as folder:
            found = await self._store.fetch(weights.key, folder / WEIGHTS)  # first: they may be gone any moment
            if found.digest != weights.digest:
                raise ModelFailed(name, f"{weights.key} in the store is not what was written")
            template = await self._stored(job)
            if template is None:
                raise ModelLoading(name)  # somebody has emptied the store of it
            await self._store.fetch(f"{_prefix(job)}{PROGRAM}", folder / PROGRAM)
            result = folder / "program.onnx"
            try:
                await asyncio.to_thread(put_weights, folder / PROGRAM, template.weights, folder / WEIGHTS, result)
            except InvalidModel as error:
                raise ModelFailed(name, f"the checkpoint does not fit its program: {error}") from error
            key = f"{PREFIX}{job.name.job}/programs/{secrets.token_hex(8)}/"
            blob = await self._store.put_file(f"{key}{PROGRAM}", result)
        artifact = Artifact(
            path=PROGRAM,
            format=ArtifactFormat.ONNX,
            digest=blob.digest,
            size_bytes=blob.size_bytes,
            key=blob.key,
        )
        return MadeProgram(template.signature, artifact, key)

    async def remove(self, program: MadeProgram) -> None:
        """Remove a program from the store; whoever has it open keeps it."""
        await self._store.delete_all(program.folder)

    async def _stored(self, job: LiveJob) -> Template | None:
        try:
            return Template.model_validate_json(await self._store.get_bytes(f"{_prefix(job)}{TEMPLATE}"))
        except (KeyError, ValidationError):
            return None

    async def _make(self, name: str, job: LiveJob, folder: Path) -> None:
        began_at = asyncio.get_running_loop().time()
        try:
            content = await self._jobs.content(job)
            found = await self._store.fetch(content.key, folder / "content")
        except (DatasetNotFound, KeyError) as error:
            raise ModelFailed(name, f"its program is made with its data, which are gone: {job.dataset}") from error
        if found.digest != job.dataset_digest:
            raise ModelFailed(name, f"its program is made with its data, which are damaged: {job.dataset}")
        order = TemplateOrder(
            trainer=job.trainer,
            parameters=dict(job.parameters),
            recipe=job.recipe,
            dataset_path=folder / "content",
            dataset_format=content.format,
            folder=folder,
        )
        template = await self._maker.make(name, order)
        prefix = _prefix(job)
        await self._store.put_file(f"{prefix}{PROGRAM}", folder / PROGRAM)
        await self._store.put_bytes(f"{prefix}{TEMPLATE}", template.model_dump_json().encode())  # makes it complete
        seconds = asyncio.get_running_loop().time() - began_at
        log.info("live.template_made", job=job.name.job, seconds=seconds, difference=template.parity.max_abs_difference)

    @asynccontextmanager
    async def _folder(self) -> AsyncIterator[Path]:
        folder = self._scratch / secrets.token_hex(16)
        await asyncio.to_thread(folder.mkdir, parents=True)
        try:
            yield folder.absolute()
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _prefix(job: LiveJob) -> str:
    release = re.sub(r"[^A-Za-z0-9._-]", "-", __version__)  # what a template is belongs to the code that made it
    return f"{PREFIX}{job.name.job}/template/{release}/"
