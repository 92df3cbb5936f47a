"""Histories of a job as streams: its events, and its log.

A reader gets a first word about the job, then all entries behind his cursor as they come, already encoded, and signs of
life between them.  Behind the native door he reads along with others where he can (`sharing.py`).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Generic, Literal, TypeVar

from google.protobuf.message import Message

from headrace.training.v1 import training_service_pb2 as pb
from headrace_server.names import JobName
from headrace_server.rpc.closing import closed_after
from headrace_server.rpc.interceptor import Context
from headrace_server.rpc.ports import DeskPort
from headrace_server.rpc.services.frames import Frames
from headrace_server.rpc.services.sharing import Kind, Sharing, hand_over, shared_entries, shared_frame
from headrace_server.rpc.services.thinning import thin
from headrace_server.rpc.wire.events import event_to_proto, log_entry_to_proto, time_to_proto
from headrace_server.rpc.wire.training import job_to_proto
from headrace_server.trainers.reports import StepCompleted
from headrace_server.training.events import Event, LogEntry, StateChanged

EntryT = TypeVar("EntryT", Event, LogEntry)


class History(ABC, Generic[EntryT]):
    """One history of every job."""

    stream: Literal["events", "logs"]

    def __init__(self, desk: DeskPort) -> None:
        self._desk = desk
        self._frames = Frames()

    async def read(
        self, name: JobName, after: int, context: Context, period_seconds: float = 0.0
    ) -> AsyncIterator[bytes]:
        """Yield the frames of one call: steps at most once in a period, everything else as it comes."""
        sharing = Sharing.of(context)
        if sharing.is_shared:
            async with closed_after(self._shared(name, sharing.after or 0)) as frames:
                async for frame in frames:
                    yield frame
            return
        first, grows = await self._opening(name)
        if sharing.after is None:
            yield first
        else:
            after = sharing.after
        if grows and sharing.has_come(after, await self._desk.latest(name, self.stream)):
            hand_over(context, name.job, after, period_seconds)
            return
        stepped_at = float("-inf")
        now = asyncio.get_running_loop().time
        async with closed_after(self._chosen(name, after, period_seconds)) as entries:
            async for entry in entries:
                yield await self._frame(name, entry)
                if entry is None or not sharing.may_share or _is_end(entry):
                    continue
                if _kind_of(entry) is Kind.STEP:
                    stepped_at = now()
                if sharing.has_come(entry.sequence, await self._desk.latest(name, self.stream)):
                    hand_over(context, name.job, entry.sequence, period_seconds, stepped_at + period_seconds - now())
                    return

    async def _shared(self, name: JobName, after: int) -> AsyncIterator[bytes]:
        """What all readers of a job share who have got all up to `after`."""
        async with closed_after(shared_entries(partial(self._follow, name), after)) as entries:
            async for entry in entries:
                place = 0 if entry is None else entry.sequence
                yield shared_frame(_kind_of(entry), place, await self._frame(name, entry))

    async def _frame(self, name: JobName, entry: EntryT | None) -> bytes:
        """What a reader gets of an entry; None: a sign of life."""
        if entry is None:
            latest = await self._desk.latest(name, self.stream)
            return self._sign(pb.Heartbeat(time=time_to_proto(datetime.now(UTC)), latest_sequence=latest))
        if (frame := self._frames.find(name.job, entry.sequence)) is not None:
            return frame
        return self._frames.keep(name.job, entry.sequence, await self._message(name, entry))

    def _chosen(self, name: JobName, after: int, period_seconds: float) -> AsyncIterator[EntryT | None]:
        """What a reader gets who wants steps at most once in a period."""
        return self._follow(name, after)

    @abstractmethod
    def _follow(self, name: JobName, after: int) -> AsyncIterator[EntryT | None]:
        """The entries behind a cursor as they come; None when nothing happened for a while."""

    @abstractmethod
    async def _opening(self, name: JobName) -> tuple[bytes, bool]:
        """What a reader gets before any entry, and whether one may still come."""

    @abstractmethod
    async def _message(self, name: JobName, entry: EntryT) -> Message:
        """What tells an entry."""

    @abstractmethod
    def _sign(self, heartbeat: pb.Heartbeat) -> bytes:
        """What tells that nothing has happened."""


class Progress(History[Event]):
    """What has happened to a job."""

    stream = "events"

    async def _opening(self, name: JobName) -> tuple[bytes, bool]:
        job = await self._desk.get(name)
        return pb.StreamProgressResponse(snapshot=job_to_proto(job)).SerializeToString(), not job.state.is_terminal

    def _follow(self, name: JobName, after: int) -> AsyncIterator[Event | None]:
        return self._desk.follow(name, after)

    def _chosen(self, name: JobName, after: int, period_seconds: float) -> AsyncIterator[Event | None]:
        return self._thinned(name, after, period_seconds) if period_seconds > 0 else self._follow(name, after)

    async def _thinned(self, name: JobName, after: int, period_seconds: float) -> AsyncIterator[Event | None]:
        async with (
            closed_after(self._follow(name, after)) as events,
            closed_after(thin(events, period_seconds)) as chosen,
        ):
            async for event in chosen:
                yield event

    async def _message(self, name: JobName, entry: Event) -> Message:
        ended = job_to_proto(await self._desk.get(name)) if _is_end(entry) else None
        return pb.StreamProgressResponse(event=event_to_proto(entry, ended))

    def _sign(self, heartbeat: pb.Heartbeat) -> bytes:
        return pb.StreamProgressResponse(heartbeat=heartbeat).SerializeToString()


class Log(History[LogEntry]):
    """What a job has written."""

    stream = "logs"

    async def _opening(self, name: JobName) -> tuple[bytes, bool]:
        return await self._frame(name, None), True

    def _follow(self, name: JobName, after: int) -> AsyncIterator[LogEntry | None]:
        return self._desk.follow_logs(name, after)

    async def _message(self, name: JobName, entry: LogEntry) -> Message:
        return pb.StreamLogsResponse(line=log_entry_to_proto(entry))

    def _sign(self, heartbeat: pb.Heartbeat) -> bytes:
        return pb.StreamLogsResponse(heartbeat=heartbeat).SerializeToString()


def _kind_of(entry: Event | LogEntry | None) -> Kind:
    if entry is None:
        return Kind.SIGN
    return Kind.STEP if isinstance(entry, Event) and isinstance(entry.happening, StepCompleted) else Kind.ENTRY


def _is_end(entry: Event | LogEntry) -> bool:
    if not isinstance(entry, Event) or not isinstance(entry.happening, StateChanged):
        return False
    return entry.happening.to_state.is_terminal
