"""What a prediction is to its caller: outputs, where the time went, and what exactly ran."""

from dataclasses import dataclass
from enum import StrEnum

from headrace_server.errors import HeadraceError
from headrace_server.models.version import ModelVersion
from headrace_server.precision import Precision
from headrace_server.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one call went.  A call that ran in slices counts all of them."""

    queue_seconds: float
    """From admission until its (first) batch began to be assembled."""
    assemble_seconds: float
    compute_seconds: float
    """Running the model on the whole batch."""
    respond_seconds: float
    """From the end of the run until the answer was ready."""
    batch_rows: int
    """Rows of the (largest) batch, those of other callers included."""
    batch_calls: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """What exactly ran."""

    artifact_digest: str
    """"sha256:" and 64 hexadecimal digits of the program."""
    backend: str
    precision: Precision
    device: str
    """"cpu" or "cuda:0"."""
    training_job: str
    """`trainingJobs/{job}`; empty when the version was not trained here."""
    training_step: int = 0
    """The step of that job after which the weights were as they are."""
    checkpoint_digest: str = ""
    """Of the manifest of the checkpoint that the weights come from; empty when it is not known."""


@dataclass(frozen=True, slots=True)
class Staleness:
    """How far a checkpoint is behind the job that wrote it."""

    steps: int
    age_seconds: float
    """Since it was stored, or until the job ended."""


@dataclass(frozen=True, slots=True)
class MemberAnswer:
    """What one member of an ensemble did for an answer."""

    name: str
    """What the ensemble calls it."""
    version: ModelVersion
    timing: Timing
    provenance: Provenance
    members: tuple["MemberAnswer", ...] = ()
    """The same of its own members, when it is an ensemble itself."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model made of the inputs of one call."""

    version: ModelVersion
    outputs: Tensors
    """Read them before the next thing happens: they may be views of a batch that keeps other callers' rows alive."""
    timing: Timing
    provenance: Provenance
    staleness: Staleness | None = None
    """For a checkpoint of a job."""
    members: tuple[MemberAnswer, ...] = ()
    """For an ensemble, in its order."""
    is_from_cache: bool = False
    """Whether it was computed for an earlier call; `provenance` says what ran then."""


class Readiness(StrEnum):
    """Whether a version can answer; names as in the contract."""

    UNLOADED = "UNLOADED"
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A version that answers, and what runs it."""

    version: ModelVersion
    backend: str


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How a version is."""

    version: ModelVersion
    readiness: Readiness
    failure: HeadraceError | None
    """Why it could not be loaded; None unless FAILED."""
    calls_in_flight: int
    """Calls that wait or run."""
    backend: str
    """What runs it; empty while unloaded."""
