"""One training job in a caller's hand: follow it, wait for it, pause it, stop it, read its log.

Letting go of a run never touches the job: it is the server's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from headrace.errors import DigestMismatch, HeadraceError, ServerFault, TrainingCancelled, TrainingFailed
from headrace.events import Event, has_ended, state_name, updated
from headrace.resume import Interruption, read_resuming
from headrace.status import from_status
from headrace.training.v1.training_event_pb2 import LogLine, ProfileRecorded
from headrace.training.v1.training_job_pb2 import TrainingJob
from headrace.training.v1.training_service_pb2 import (
    CancelTrainingJobRequest,
    DeleteTrainingJobRequest,
    DownloadProfileRequest,
    GetTrainingJobRequest,
    PauseTrainingJobRequest,
    ProfileTrainingRequest,
    ResumeTrainingJobRequest,
    StreamLogsRequest,
    StreamLogsResponse,
    StreamProgressRequest,
    StreamProgressResponse,
)
from headrace.wire import Wire


class TrainingRun:
    """One training job.  Made by `Client.start_training` and `Client.training_run`."""

    def __init__(self, wire: Wire, job: TrainingJob) -> None:
        self._wire = wire
        self._job = job

    @property
    def name(self) -> str:
        """`trainingJobs/{job}`."""
        return self._job.name

    @property
    def job(self) -> TrainingJob:
        """The job as last heard of: by `start_training`, `refresh`, `follow`, `wait` or `cancel`."""
        return self._job

    def __repr__(self) -> str:
        return f"<TrainingRun {self.name} {state_name(self._job.state)}>"

    async def refresh(self) -> TrainingJob:
        """Ask the server how the job is now."""
        answer = await self._wire.call_once(self._wire.training.GetTrainingJob, GetTrainingJobRequest(name=self.name))
        self._job = answer.job
        return self._job

    async def follow(
        self,
        after: int = 0,
        *,
        min_step_period: timedelta | None = None,
        on_interruption: Callable[[Interruption], None] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield every event after sequence `after`, in order, each exactly once; ends after the one that ends the job.

        A broken connection is opened again where it broke, for as long as `Retry.reconnect_seconds`; each break is
        told to `on_interruption`.  With `min_step_period` the server leaves out step_completed events that come
        faster.  Raises CursorExpired or CursorAhead when `after` is not in the history, and JobNotFound.
        """
        progress = _Progress(after)

        def connect(sequence: int) -> grpc.aio.UnaryStreamCall[StreamProgressRequest, StreamProgressResponse]:
            return self._wire.training.StreamProgress(
                StreamProgressRequest(
                    name=self.name, after_sequence=sequence, min_step_period=_duration(min_step_period)
                )
            )

        async with aclosing(read_resuming(self._wire, connect, progress, on_interruption)) as frames:
            async for frame in frames:
                if frame.HasField("snapshot"):
                    self._job = frame.snapshot
                    progress.note_snapshot(frame.snapshot)
                elif frame.HasField("event") and frame.event.sequence > progress.sequence:
                    event = Event.of(frame.event)
                    progress.note_event(event)
                    if event.sequence > self._job.latest_sequence or event.ends_the_job:
                        self._job = updated(self._job, event)
                    yield event

    async def wait(self, timeout: float | None = None) -> TrainingJob:
        """Wait until the job has succeeded and return it; its `model_version` names the result.

        Raises TrainingFailed or TrainingCancelled, which hold the job and the evidence, and TimeoutError when
        `timeout` seconds pass first: the job goes on.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._wait_for_end()
        except HeadraceError:
            raise  # DeadlineExceeded is a TimeoutError too, but not this one
        except TimeoutError as error:
            raise TimeoutError(f"{self.name} is still {state_name(self._job.state)} after {timeout} s") from error
        match self._job.state:
            case TrainingJob.State.STATE_FAILED:
                raise TrainingFailed(self._job, from_status(self._job.failure))
            case TrainingJob.State.STATE_CANCELLED:
                raise TrainingCancelled(self._job)
            case _:
                return self._job

    async def _wait_for_end(self) -> None:
        if has_ended(await self.refresh()):
            return
        # Only the end matters: the server need not send each step.
        events = self.follow(self._job.latest_sequence, min_step_period=timedelta(seconds=5))
        async with aclosing(events):
            async for _ in events:
                pass

    async def cancel(self, *, kill: bool = False, reason: str = "") -> TrainingJob:
        """Ask the job to stop: after a last checkpoint, or at once with `kill`.  Returns it in its new state.

        Raises IllegalTransition when the job has ended.
        """
        modes = CancelTrainingJobRequest.Mode
        mode = modes.MODE_KILL if kill else modes.MODE_GRACEFUL
        answer = await self._wire.call_once(
            self._wire.training.CancelTrainingJob, CancelTrainingJobRequest(name=self.name, mode=mode, reason=reason)
        )
        self._job = answer.job
        return self._job

    async def pause(self, *, reason: str = "", wait: bool = False) -> TrainingJob:
        """Ask the job to rest after a checkpoint.  Returns it as PAUSING, or PAUSED when it had no worker.

        With `wait`, returns it when it rests; or when it has ended, which it may do before it can rest.  `wait` and
        `follow` go on over a pause.  Raises IllegalTransition when the job is about to end, or has ended.
        """
        answer = await self._wire.call_once(
            self._wire.training.PauseTrainingJob, PauseTrainingJobRequest(name=self.name, reason=reason)
        )
        self._job = answer.job
        if wait and self._job.state == TrainingJob.State.STATE_PAUSING:
            async with aclosing(self.follow(self._job.latest_sequence)) as events:
                async for event in events:
                    if event.kind == "state_changed":
                        break
        return self._job

    async def resume(self) -> TrainingJob:
        """Let the paused job wait for its turn again; it goes on exactly where it was.  Returns it as QUEUED.

        Raises IllegalTransition when the job is not paused, also while it is still PAUSING.
        """
        answer = await self._wire.call_once(
            self._wire.training.ResumeTrainingJob, ResumeTrainingJobRequest(name=self.name)
        )
        self._job = answer.job
        return self._job

    async def delete(self) -> None:
        """Remove the job, which has ended, with its history and its checkpoints; the model version stays.

        Raises IllegalTransition when the job has not ended.
        """
        await self._wire.call_once(self._wire.training.DeleteTrainingJob, DeleteTrainingJobRequest(name=self.name))

    async def profile(self, num_steps: int = 10) -> ProfileRecorded:
        """Have the next steps of the running job recorded, and wait for the trace; see `download_profile`.

        Raises IllegalTransition when the job is not running, ServerFault when it ends before the trace is there.
        """
        after = (await self.refresh()).latest_sequence
        request = ProfileTrainingRequest(name=self.name, num_steps=num_steps)
        await self._wire.call_once(self._wire.training.ProfileTraining, request)
        async with aclosing(self.follow(after)) as events:
            async for event in events:
                if isinstance(event.content, ProfileRecorded):
                    return event.content
        raise ServerFault(f"{self.name} ended without a trace")

    async def download_profile(self, recorded: ProfileRecorded, to: str | os.PathLike[str]) -> Path:
        """Write a trace (gzipped JSON for Perfetto and chrome://tracing) to `to`, and return where it is.

        Raises DigestMismatch, and then leaves nothing, when what arrives is not what was recorded.
        """
        destination, digest = Path(to), hashlib.sha256()
        part = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.part")
        try:
            with await asyncio.to_thread(part.open, "xb") as file:
                call = self._wire.training.DownloadProfile(DownloadProfileRequest(name=self.name, uri=recorded.uri))
                async with aclosing(self._wire.read(call)) as messages:
                    async for message in messages:
                        digest.update(message.chunk)
                        await asyncio.to_thread(file.write, message.chunk)
            if (found := f"sha256:{digest.hexdigest()}") != recorded.digest:
                raise DigestMismatch(f"the trace has the digest {found}, not {recorded.digest}")
            await asyncio.to_thread(part.replace, destination)
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        return destination

    async def logs(
        self,
        after: int = 0,
        *,
        follow: bool = True,
        on_interruption: Callable[[Interruption], None] | None = None,
    ) -> AsyncGenerator[LogLine, None]:
        """Yield every line of the job's log after sequence `after`, each exactly once, until the job has ended.

        With `follow=False` it ends where the log ended when it was opened.
        """
        cursor = _LogCursor(after)
        end: int | None = None

        def connect(sequence: int) -> grpc.aio.UnaryStreamCall[StreamLogsRequest, StreamLogsResponse]:
            return self._wire.training.StreamLogs(StreamLogsRequest(name=self.name, after_sequence=sequence))

        async with aclosing(read_resuming(self._wire, connect, cursor, on_interruption)) as frames:
            async for frame in frames:
                if frame.HasField("line") and frame.line.sequence > cursor.sequence:
                    cursor.sequence = frame.line.sequence
                    yield frame.line
                elif not follow and end is None and frame.HasField("heartbeat"):
                    end = frame.heartbeat.latest_sequence  # the first frame of the first connection
                if end is not None and cursor.sequence >= end:
                    return


class _Progress:
    """How far a reader of events is, and whether there can be more."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.is_complete = False

    def note_snapshot(self, job: TrainingJob) -> None:
        self.is_complete = has_ended(job) and job.latest_sequence <= self.sequence

    def note_event(self, event: Event) -> None:
        self.sequence = event.sequence
        self.is_complete = event.ends_the_job


class _LogCursor:
    """How far a reader of a log is.  A log has no last entry: the stream ends well only when the job has ended."""

    is_complete = True

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence


def _duration(period: timedelta | None) -> Duration | None:
    if period is None:
        return None
    duration = Duration()
    duration.FromTimedelta(period)
    return duration
