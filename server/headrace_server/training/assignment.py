"""What the server and the agent of a job hand each other as files: the assignment down, the published export up.

Knows no process and no connection.  Both ends are always of the same release.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.launchers.launcher import Formation
from headrace_server.models.version import Artifact, Lineage
from headrace_server.tensors import Signature
from headrace_server.trainers.recipe import Recipe
from headrace_server.training.spec import StartPoint

ASSIGNMENT_FILE = "assignment.json"
"""The name of the assignment in the folder that the agent is started with."""

PUBLISHED_EXPORT_FILE = "manifest.json"
"""The last part of the key of a PublishedExport, below `Assignment.artifact_prefix`; written after everything else."""


class Assignment(BaseModel):
    """All that the agent of one attempt needs to know.  The file is a secret: it holds the token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    """`trainingJobs/{job}`."""
    attempt: int
    """Counted from 1."""
    token: str
    """What the agent proves with that it is this attempt."""
    server_address: str
    """A gRPC target: "unix:/…/worker.sock"."""
    trainer: str
    parameters: dict[str, Any]
    recipe: Recipe
    dataset_key: str
    """Where the content lies in the store."""
    dataset_format: DatasetFormat
    dataset_digest: str
    """"sha256:" and 64 hexadecimal digits; the agent checks what it fetched against it."""
    resume_from: str | None
    """The key of a checkpoint's manifest in the store; None: from the beginning."""
    start_from: StartPoint | None = None
    """Weights to begin with where there is no checkpoint."""
    num_ranks: int = 1
    """Trainer processes on this machine, which train together."""
    formation: Formation = Formation()
    """Where this machine stands among those whose ranks train together."""
    store_patience_seconds: float = 600
    """How long the store may refuse before the attempt is given up."""
    gate: Path | None = None
    """Where trainings wait that give way to predictions; None where nothing is served."""
    compile_cache: Path | None = None
    """Where trainers of this machine keep compiled code for each other; None: each compiles for itself."""
    store_root: Path
    """The folder of the LocalBlobStore, which server and agent share."""
    checkpoint_prefix: str
    """"checkpoints/{job}/": checkpoints of every attempt of this job go below it."""
    profile_prefix: str = "profiles/"
    """"profiles/{job}/": traces go below it."""
    artifact_prefix: str
    """"exports/{job}/{attempt}/": the exported files go below it, then a PublishedExport as PUBLISHED_EXPORT_FILE."""
    workspace: Path
    """A folder that belongs to this attempt alone."""
    heartbeat_seconds: float
    """Period of signs of life."""
    detached_seconds: float
    """How long to train on with no server to report to."""


class PublishedExport(BaseModel):
    """What an agent put into the store for the server to register: `artifact_prefix` + PUBLISHED_EXPORT_FILE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signature: Signature
    artifacts: tuple[Artifact, ...]
    """With digest, size and key, each below the attempt's `artifact_prefix`; paths are unique."""
    metrics: dict[str, float]
    """Measures of the exported weights on held-out rows."""
    lineage: Lineage
    """As the trainer wrote it: step, code version, environment, parity.  The server adds the rest."""
