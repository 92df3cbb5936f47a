"""A checkpoint of a training job as something that answers predictions; it is never registered."""

from headrace_server.models.version import ModelVersion
from headrace_server.names import SnapshotName

LABELS = ("trainingJobs", "live")
"""Of all snapshots alike: metrics hold no ids."""


class Snapshot(ModelVersion):
    """The network of a job as one of its checkpoints has it.

    To whatever runs it, it is a version: `model` is `trainingJobs/{job}`, `version` the step, `lineage` names the job
    and the checkpoint, `created_at` is when the checkpoint was stored, and the one artifact is an ONNX program.
    """

    @property
    def name(self) -> SnapshotName:
        """`trainingJobs/{job}@step:{step}`."""
        return SnapshotName(self.model, self.version)

    @property
    def key(self) -> tuple[str, int, str]:
        """With the digest of the program: a job that was set back may come to the same step with other weights."""
        return (self.model, self.version, self.artifacts[0].digest)

    @property
    def labels(self) -> tuple[str, str]:
        """The same for all."""
        return LABELS
