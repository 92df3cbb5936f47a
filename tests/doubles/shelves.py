"""A catalogue of data sets and a registry of models that keep everything in memory."""

import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from headrace_server.datasets.dataset import Column, Dataset, DatasetFormat, DatasetVersion, Description
from headrace_server.errors import DatasetNotFound, ModelNotFound
from headrace_server.models.ensemble import Ensemble
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import Artifact, ArtifactFormat, Lineage, Model, ModelVersion, Parity
from headrace_server.names import ModelName
from headrace_server.pages import Page, PageRequest
from headrace_server.tensors import Signature

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class MemoryCatalog:
    """Data sets by id; contents are believed to be one column of one row."""

    def __init__(self) -> None:
        self.versions: dict[str, list[DatasetVersion]] = {}
        self.contents: dict[str, bytes] = {}

    async def store(
        self,
        dataset: str,
        chunks: AsyncIterator[bytes],
        *,
        format: DatasetFormat | None,  # noqa: A002
        file_name: str,
        digest: str,
    ) -> DatasetVersion:
        """Keep a content."""
        content = b"".join([chunk async for chunk in chunks])
        version = DatasetVersion(
            dataset=dataset,
            format=format or DatasetFormat.CSV,
            digest="sha256:" + hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            description=Description(num_rows=1, columns=(Column(name="y", type="int64", num_missing=2),)),
            created_at=NOON,
        )
        self.contents[dataset] = content
        self.versions.setdefault(dataset, []).insert(0, version)
        return version

    async def register(self, dataset: str, uri: str, *, format: DatasetFormat | None) -> DatasetVersion:  # noqa: A002
        """Keep the URI itself."""
        return await self.store(dataset, _one(uri.encode()), format=format, file_name="", digest="")

    async def get(self, dataset: str) -> Dataset:
        """One data set."""
        if dataset not in self.versions:
            raise DatasetNotFound(f"datasets/{dataset}")
        versions = self.versions[dataset]
        return Dataset(id=dataset, latest=versions[0], num_versions=len(versions), created_at=NOON)

    async def list_versions(self, dataset: str, page: PageRequest) -> Page[DatasetVersion]:
        """All versions."""
        return page.page(self.versions[dataset], [version.digest for version in self.versions[dataset]])

    async def list(self, page: PageRequest) -> Page[Dataset]:
        """All data sets by id."""
        ids = [key for key in sorted(self.versions) if page.after is None or key > page.after]
        return page.page([await self.get(key) for key in ids], ids)

    async def delete(self, dataset: str) -> None:
        """Forget one."""
        await self.get(dataset)
        del self.versions[dataset]


class MemoryRegistry:
    """Models by id; every version has one file."""

    def __init__(self) -> None:
        self.contents: dict[tuple[str, int], bytes] = {}
        self.aliases: dict[str, dict[str, int]] = {}
        self.serving: dict[str, ServingOptions] = {}
        self.ensembles: list[Ensemble] = []

    async def register_file(
        self,
        model: str,
        format: ArtifactFormat,  # noqa: A002
        chunks: AsyncIterator[bytes],
        *,
        digest: str,
        request_id: str,
    ) -> ModelVersion:
        """Keep a file."""
        content = b"".join([chunk async for chunk in chunks])
        version = self._latest(model) + 1
        self.contents[model, version] = content
        return await self.resolve(ModelName(model, version))

    async def register_ensemble(self, model: str, ensemble: Ensemble, *, request_id: str) -> ModelVersion:
        """Keep nothing of it but that it was there."""
        self.ensembles.append(ensemble)
        version = self._latest(model) + 1
        self.contents[model, version] = b""
        return (await self.resolve(ModelName(model, version))).model_copy(update={"ensemble": ensemble})

    async def resolve(self, name: ModelName) -> ModelVersion:
        """The version that a name means."""
        version = name.version or self.aliases.get(name.model, {}).get(name.alias or "") or self._latest(name.model)
        if (name.model, version) not in self.contents or (name.alias and name.alias not in self.aliases[name.model]):
            raise ModelNotFound(str(name))
        content = self.contents[name.model, version]
        artifact = Artifact(
            path="model.onnx", format=ArtifactFormat.ONNX, digest="sha256:0", size_bytes=len(content), key="k"
        )
        return ModelVersion(
            model=name.model,
            version=version,
            signature=Signature(inputs=(), outputs=()),
            artifacts=(artifact,),
            metrics={"accuracy": 0.5},
            lineage=Lineage(
                training_job="trainingJobs/j1",
                step=9,
                environment={"python": "3.11"},
                spec={"model": name.model, "widths": [1, 2.5], "deep": {"is": True, "none": None}},
                parity={"model.onnx": Parity(num_rows=8, max_abs_difference=1e-6)},
            ),
            created_at=NOON,
        )

    async def get(self, model: str) -> Model:
        """One model."""
        if not self._latest(model):
            raise ModelNotFound(f"models/{model}")
        return Model(
            id=model,
            latest_version=self._latest(model),
            aliases=self.aliases.get(model, {}),
            created_at=NOON,
            serving=self.serving.get(model, ServingOptions()),
        )

    async def list_versions(self, model: str, page: PageRequest) -> Page[ModelVersion]:
        """All versions, newest first."""
        numbers = sorted((number for name, number in self.contents if name == model), reverse=True)
        versions = [await self.resolve(ModelName(model, number)) for number in numbers]
        return page.page(versions, [str(number) for number in numbers])

    async def list(self, page: PageRequest) -> Page[Model]:
        """All models by id."""
        ids = sorted({name for name, _ in self.contents if page.after is None or name > page.after})
        return page.page([await self.get(key) for key in ids], ids)

    async def assign_alias(self, model: str, alias: str, version: int) -> Model:
        """Point an alias."""
        self.aliases.setdefault(model, {})[alias] = version
        return await self.get(model)

    async def delete_alias(self, model: str, alias: str) -> Model:
        """Take an alias away."""
        del self.aliases[model][alias]
        return await self.get(model)

    async def change_serving(self, model: str, change: Callable[[ServingOptions], ServingOptions]) -> Model:
        """Change how a model is served."""
        await self.get(model)
        self.serving[model] = change(self.serving.get(model, ServingOptions()))
        return await self.get(model)

    def read_artifact(self, version: ModelVersion, path: str) -> tuple[Artifact, AsyncIterator[bytes]]:
        """The file, in pieces of four bytes."""
        content = self.contents[version.model, version.version]
        return version.artifacts[0], _pieces(content)

    def _latest(self, model: str) -> int:
        return max((number for name, number in self.contents if name == model), default=0)


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 4):
        yield content[start : start + 4]
