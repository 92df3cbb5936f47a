"""Jobs whose checkpoints are whatever a test says, and a maker of programs that takes as long as a test likes."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.errors import HeadraceError, JobNotFound, ModelNotLoaded
from headrace_server.inference.live.templates import MadeProgram
from headrace_server.inference.prediction import Readiness
from headrace_server.models.version import Artifact, ArtifactFormat, ModelVersion
from headrace_server.names import JobName
from headrace_server.storage.blob_store import Blob
from headrace_server.tensors import DataType, Signature, TensorSpec
from headrace_server.trainers.live_job import Content, KeptCheckpoint, LiveJob
from headrace_server.trainers.recipe import Recipe

SAVED_AT = datetime(2026, 1, 1, tzinfo=UTC)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(-1,)),),
    outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(-1,)),),
)


class ScriptedJobs:
    """One job, `trainingJobs/j`; `save` is what its training does."""

    def __init__(self) -> None:
        self.job = LiveJob(
            name=JobName("j"), state="RUNNING", is_over=False, ended_at=None, latest_step=0, latest=None, best=None,
            model="models/m", trainer="tabular", parameters={}, recipe=Recipe(seed=1),
            dataset="datasets/d/versions/0123456789abcdef", dataset_digest="sha256:d",
        )  # fmt: skip
        self.files: dict[str, dict[str, Blob]] = {}
        self.num_looks = 0

    def save(self, step: int, *, is_best: bool = False, keeps: int = 2, averaged: bool = False) -> str:
        """A checkpoint; all but the newest `keeps` go."""
        key = f"checkpoints/j/{step:012}-{step:016x}/manifest.json"
        names = ["weights.safetensors", *(["best.safetensors"] if averaged else [])]
        self.files[key] = {name: Blob(f"{key}:{name}", 1, f"sha256:{step}:{name}") for name in names}
        self.job = replace(self.job, latest=key, best=key if is_best else self.job.best, latest_step=step)
        for old in list(self.files)[:-keeps]:
            del self.files[old]
        return key

    async def look(self, name: JobName) -> LiveJob:
        self.num_looks += 1
        if name != self.job.name:
            raise JobNotFound(str(name))
        return self.job

    async def kept(self, name: JobName) -> dict[int, str]:
        return {int(key.split("/")[2][:12]): key for key in reversed(self.files)}

    async def open(self, name: JobName, manifest_key: str) -> KeptCheckpoint:
        step = int(manifest_key.split("/")[2][:12])
        return KeptCheckpoint(step, f"sha256:{step}", SAVED_AT, self.files[manifest_key])

    async def content(self, job: LiveJob) -> Content:
        return Content("datasets/d", DatasetFormat.CSV, "sha256:d")


class ScriptedPrograms:
    """Makes programs of nothing; `gate`, when it is closed, holds up `prepare`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_prepared = 0
        self.made: list[str] = []
        """The digest of the weights of each program."""
        self.removed: list[str] = []
        self.failure: HeadraceError | None = None

    async def sweep(self) -> None:
        self.made.clear()

    async def prepare(self, name: str, job: LiveJob) -> None:
        self.num_prepared += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def program(self, name: str, job: LiveJob, weights: Blob) -> MadeProgram:
        self.made.append(weights.digest)
        artifact = Artifact(
            path="model.onnx", format=ArtifactFormat.ONNX, digest=f"sha256:of {weights.digest}", size_bytes=1, key="k"
        )
        return MadeProgram(SIGNATURE, artifact, weights.digest)

    async def remove(self, program: MadeProgram) -> None:
        self.removed.append(program.folder)


class ScriptedResidency:
    """Loads at once, or fails to; `loaded` is what answers."""

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.failure: HeadraceError | None = None
        self._keys: set[tuple[str, int, str]] = set()

    def readiness(self, version: ModelVersion) -> Readiness:
        return Readiness.READY if version.key in self._keys else Readiness.UNLOADED

    async def load(self, version: ModelVersion) -> None:
        if self.failure is not None:
            raise self.failure
        self._keys.add(version.key)
        self.loaded.append(version.version)

    async def unload(self, version: ModelVersion) -> None:
        if version.key not in self._keys:
            raise ModelNotLoaded(str(version.name))
        self._keys.discard(version.key)
        self.loaded.remove(version.version)
