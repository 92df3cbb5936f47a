"""What the door needs of the floors below, as protocols; `house.py` passes the real ones.

Errors are those of `errors`; each method says which in its own home.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal, Protocol

from headrace_server.datasets.dataset import Dataset, DatasetFormat, DatasetVersion
from headrace_server.inference.improving import PlanReport
from headrace_server.inference.prediction import LoadedModel, ModelStatus, Prediction
from headrace_server.inference.tally import Statistics
from headrace_server.models.ensemble import Ensemble
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import Artifact, ArtifactFormat, Model, ModelVersion
from headrace_server.names import JobName, ModelName
from headrace_server.pages import Page, PageRequest
from headrace_server.tensors import Tensors
from headrace_server.training.comparison import Comparison
from headrace_server.training.draft import StartRequest
from headrace_server.training.events import Event, LogEntry
from headrace_server.training.job import Job
from headrace_server.training.session import WorkerHello, WorkerSession


class CatalogPort(Protocol):
    """`datasets.catalog.Catalog`."""

    async def store(
        self,
        dataset: str,
        chunks: AsyncIterator[bytes],
        *,
        format: DatasetFormat | None,  # noqa: A002 - the contract's word
        file_name: str,
        digest: str,
    ) -> DatasetVersion:
        """Store a content that comes in pieces."""
        ...

    async def register(self, dataset: str, uri: str, *, format: DatasetFormat | None) -> DatasetVersion:  # noqa: A002
        """Copy what a URI names."""
        ...

    async def get(self, dataset: str) -> Dataset:
        """One data set."""
        ...

    async def list_versions(self, dataset: str, page: PageRequest) -> Page[DatasetVersion]:
        """A page of versions, newest first."""
        ...

    async def list(self, page: PageRequest) -> Page[Dataset]:
        """A page of data sets, by name."""
        ...

    async def delete(self, dataset: str) -> None:
        """Delete a data set."""
        ...


class RegistryPort(Protocol):
    """`models.registry.Registry`."""

    async def register_file(
        self,
        model: str,
        format: ArtifactFormat,  # noqa: A002 - the contract's word
        chunks: AsyncIterator[bytes],
        *,
        digest: str,
        request_id: str,
    ) -> ModelVersion:
        """Register a file that comes in pieces."""
        ...

    async def register_ensemble(self, model: str, ensemble: Ensemble, *, request_id: str) -> ModelVersion:
        """Register an ensemble."""
        ...

    async def resolve(self, name: ModelName) -> ModelVersion:
        """The version that a name means now."""
        ...

    async def get(self, model: str) -> Model:
        """One model."""
        ...

    async def list_versions(self, model: str, page: PageRequest) -> Page[ModelVersion]:
        """A page of versions, newest first."""
        ...

    async def list(self, page: PageRequest) -> Page[Model]:
        """A page of models, by name."""
        ...

    async def assign_alias(self, model: str, alias: str, version: int) -> Model:
        """Point an alias to a version."""
        ...

    async def delete_alias(self, model: str, alias: str) -> Model:
        """Take an alias away."""
        ...

    async def change_serving(self, model: str, change: Callable[[ServingOptions], ServingOptions]) -> Model:
        """Change how the versions of a model are served."""
        ...

    def read_artifact(self, version: ModelVersion, path: str) -> tuple[Artifact, AsyncIterator[bytes]]:
        """One file of a version, and its bytes."""
        ...


class EnginePort(Protocol):
    """`inference.engine.Engine`."""

    async def predict(
        self,
        name: ModelName,
        inputs: Tensors,
        *,
        output_names: Sequence[str] = (),
        deadline: float | None = None,
        priority: int = 0,
    ) -> Prediction:
        """Run a model once.  `deadline` is in `time.monotonic()` seconds."""
        ...

    async def load(self, name: ModelName, backend: str = "") -> LoadedModel:
        """Load a version; returns when it answers."""
        ...

    async def unload(self, name: ModelName) -> ModelVersion:
        """Unload a version when its calls are finished."""
        ...

    async def status(self, name: ModelName) -> ModelStatus:
        """How the version that a name means is."""
        ...

    async def plan(self, name: ModelName) -> PlanReport:
        """How the version that a name means is run, and why."""
        ...

    async def measure(self, name: ModelName) -> PlanReport:
        """Measure a version anew."""
        ...

    async def calibrate(self, name: ModelName, inputs: Tensors) -> int:
        """Set the rows that its plans are judged with; returns how many are kept."""
        ...

    def look(self, version: ModelVersion) -> ModelStatus:
        """How a version is."""
        ...

    def loaded(self) -> list[ModelVersion]:
        """The versions that are loaded or being loaded."""
        ...

    def statistics(self) -> Mapping[ModelName, Statistics]:
        """What was counted for each version that was loaded or asked since the start."""
        ...


class DeskPort(Protocol):
    """`training.desk.TrainingDesk`, as its callers see it."""

    async def start(self, request: StartRequest) -> Job:
        """Admit a job."""
        ...

    async def get(self, name: JobName) -> Job:
        """One job as it is now."""
        ...

    async def list(self, page: PageRequest, filter: str) -> Page[Job]:  # noqa: A002 - the contract's word
        """A page of jobs, newest first."""
        ...

    async def compare(self, names: Sequence[JobName]) -> Comparison:
        """Put jobs side by side."""
        ...

    async def cancel(self, name: JobName, *, kill: bool, reason: str) -> Job:
        """Ask a job to stop."""
        ...

    async def pause(self, name: JobName, *, reason: str) -> Job:
        """Ask a job to rest."""
        ...

    async def resume(self, name: JobName) -> Job:
        """Let a paused job go on."""
        ...

    async def delete(self, name: JobName) -> None:
        """Remove a job that is over."""
        ...

    async def profile(self, name: JobName, num_steps: int) -> None:
        """Have the next steps of a running job recorded."""
        ...

    async def read_profile(self, name: JobName, uri: str) -> AsyncIterator[bytes]:
        """The bytes of a recorded trace."""
        ...

    async def live_job_using(self, dataset: str) -> Job | None:
        """A job that is not over and trains on this data set, if there is one."""
        ...

    def follow(self, name: JobName, after_sequence: int) -> AsyncIterator[Event | None]:
        """The history after a cursor as it grows; None when nothing happened for a while."""
        ...

    def follow_logs(self, name: JobName, after_sequence: int) -> AsyncIterator[LogEntry | None]:
        """The log after a cursor as it grows; None when nothing happened for a while."""
        ...

    async def latest(self, name: JobName, stream: Literal["events", "logs"]) -> int:
        """The newest sequence of a stream; 0 when it is empty."""
        ...


class WorkersPort(Protocol):
    """`training.desk.TrainingDesk`, as agents see it."""

    async def get(self, name: JobName) -> Job:
        """One job as it is now."""
        ...

    async def attach(self, hello: WorkerHello) -> WorkerSession:
        """Let an agent in."""
        ...
