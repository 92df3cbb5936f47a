"""A reader of one job's progress that resumes after its last event, over as many servers as it takes."""

import asyncio
from collections.abc import Callable

import grpc

from headrace.training.v1 import (
    training_event_pb2 as event_pb,
    training_job_pb2 as job_pb,
    training_service_pb2 as pb,
)
from tests.doubles.server_process import Callers


def is_step(event: event_pb.TrainingEvent) -> bool:
    """Whether it tells of a step."""
    return event.HasField("step_completed")


def is_checkpoint(event: event_pb.TrainingEvent) -> bool:
    """Whether it tells of a checkpoint that is kept."""
    return event.HasField("checkpoint_saved")


def is_now(state: "job_pb.TrainingJob.State.ValueType") -> Callable[[event_pb.TrainingEvent], bool]:
    """Whether an event tells that the job has reached this state."""
    return lambda event: event.HasField("state_changed") and event.state_changed.to == state


class Watcher:
    """Collects every event of a job."""

    def __init__(self, job: str) -> None:
        self.name = f"trainingJobs/{job}"
        self.events: list[event_pb.TrainingEvent] = []
        self.num_connections = 0
        self.is_over = False
        self._news = asyncio.Condition()

    @property
    def sequences(self) -> list[int]:
        """What was seen, in the order it was seen."""
        return [event.sequence for event in self.events]

    async def watch(self, callers: Callers) -> grpc.StatusCode:
        """Read until the stream ends, however it does; OK when the job is over."""
        after = self.events[-1].sequence if self.events else 0
        self.num_connections += 1
        try:
            async for frame in callers.training.StreamProgress(
                pb.StreamProgressRequest(name=self.name, after_sequence=after)
            ):
                if frame.HasField("event"):
                    await self._take(frame.event)
        except grpc.aio.AioRpcError as error:
            return error.code()
        async with self._news:
            self.is_over = True
            self._news.notify_all()
        return grpc.StatusCode.OK

    async def saw(
        self, fits: Callable[[event_pb.TrainingEvent], bool], after: int = 0, seconds: float = 240
    ) -> event_pb.TrainingEvent:
        """Wait for an event after a sequence that fits.  Raises AssertionError when the job is over before."""
        async with asyncio.timeout(seconds), self._news:
            while True:
                for event in self.events:
                    if event.sequence > after and fits(event):
                        return event
                assert not self.is_over, [str(event) for event in self.events[-3:]]
                await self._news.wait()

    async def _take(self, event: event_pb.TrainingEvent) -> None:
        async with self._news:
            self.events.append(event)
            self._news.notify_all()
