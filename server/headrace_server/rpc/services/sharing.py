"""Readers of one history who read along behind the native door: what it and this server say to each other about them.

A reader is answered here until he is near the end of what there is.  Then his call ends with a word that says how far
he is and what he follows, and the door writes to him what comes: of that there is one stream for all readers, which it
asks for once.  Who reads too slowly for what the door keeps is asked for again, behind the last that he got.  The other
side is native/door/relay.h.  Without it nobody reads along.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from headrace_server.errors import CursorExpired
from headrace_server.rpc.closing import closed_after
from headrace_server.rpc.interceptor import Context

MAY_SHARE = "x-headrace-may-share"
SHARE = "x-headrace-share"
SHARED = "x-headrace-shared"
AFTER = "x-headrace-after"

BACKLOG_ENTRIES = 512
"""So far before the first of its readers a shared stream begins: others may be as far behind."""
NEAR_ENTRIES = 16
"""So near to the end somebody must be who was too slow before."""

EntryT = TypeVar("EntryT")


class Kind(IntEnum):
    """What readers may go without."""

    SIGN = 0
    """A sign of life."""
    ENTRY = 1
    """Everybody gets it."""
    STEP = 2
    """Those who asked for fewer get the newest of a while."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What the door says of a call."""

    may_share: bool
    """This reader may read along with others from some place on."""
    after: int | None
    """All up to this place has been sent already, the snapshot included; None: nothing has."""
    is_shared: bool
    """The stream that all of them read."""

    @classmethod
    def of(cls, context: Context) -> "Sharing":
        """What a call says, if it came through the native door; on the public port itself nobody is believed."""
        if not str(context.peer()).startswith("unix:"):
            return cls(may_share=False, after=None, is_shared=False)
        said = dict(context.invocation_metadata() or ())
        if (shared := said.get(SHARED)) is not None:
            return cls(may_share=False, after=int(shared), is_shared=True)
        after = said.get(AFTER)
        return cls(may_share=MAY_SHARE in said, after=None if after is None else int(after), is_shared=False)

    def has_come(self, after: int, latest: int) -> bool:
        """Whether a reader who has got all up to `after` is near enough to the end to read along."""
        near = BACKLOG_ENTRIES if self.after is None else NEAR_ENTRIES
        return self.may_share and 0 <= latest - after <= near


async def shared_entries(
    follow: Callable[[int], AsyncIterator[EntryT | None]], after: int
) -> AsyncIterator[EntryT | None]:
    """What a shared stream tells whose first reader has got all up to `after`."""
    begin = max(0, after - BACKLOG_ENTRIES)
    while True:
        async with closed_after(follow(begin)) as entries:
            try:
                async for entry in entries:
                    yield entry
                    begin = -1
                return
            except CursorExpired:
                if begin <= 0:
                    raise
                begin = 0  # not all of that is kept any more: from the oldest that is


def hand_over(context: Context, key: str, after: int, period_seconds: float = 0.0, wait_seconds: float = 0.0) -> None:
    """Let the reader of a call, which must end now, read along in the stream `key` of its method.

    He has got all up to `after`, wants steps at most once in a period, and the next not before so long from now.
    """
    period, wait = (round(max(0.0, seconds) * 1e6) for seconds in (period_seconds, wait_seconds))
    context.set_trailing_metadata((*context.trailing_metadata(), (SHARE, f"{after} {period} {wait} {key}")))


def shared_frame(kind: Kind, place: int, frame: bytes) -> bytes:
    """One message of a stream that many read: its place in the history, its kind, and what readers get of it."""
    return (place << 2 | kind).to_bytes(8, "little") + frame
