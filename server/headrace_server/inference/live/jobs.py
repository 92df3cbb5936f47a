"""What serving asks of training; `training.live_jobs.LiveJobs` answers."""

from typing import Protocol

from headrace_server.names import JobName
from headrace_server.trainers.live_job import Content, KeptCheckpoint, LiveJob


class Jobs(Protocol):
    """Jobs and their checkpoints, for reading."""

    async def look(self, name: JobName) -> LiveJob:
        """A job as it is now.  Raises JobNotFound."""
        ...

    async def kept(self, name: JobName) -> dict[int, str]:
        """The steps of all complete checkpoints with the keys of their manifests, the last step first."""
        ...

    async def open(self, name: JobName, manifest_key: str) -> KeptCheckpoint:
        """What one checkpoint consists of.  Raises KeyError when it is not kept any more, OSError when damaged."""
        ...

    async def content(self, job: LiveJob) -> Content:
        """The data that a job learns from.  Raises DatasetNotFound."""
        ...
