"""What callers may cost: so many calls at a time, each with so much metadata, and messages of such a size.

The native door sees to it itself; where grpc.aio holds the public port, every call passes through here.  gRPC has
limits of its own, which say nothing that programs can read.
"""

from collections.abc import Iterable

from headrace_server.errors import BuffersFull, HeadraceError, InvalidSpec, TooLarge, TooManyCalls, Violation
from headrace_server.settings import ServerSettings

MAX_METADATA_BYTES = 16 << 10
"""What callers may say of a call, as HTTP/2 counts it."""
MAX_PARSED_METADATA_BYTES = 256 << 10
"""Beyond this gRPC gives up the call by itself, so it is well above."""
FIELD_OVERHEAD_BYTES = 32
"""RFC 9113, section 6.5.2."""


class Bounds:
    """The limits, and how many calls are under way."""

    def __init__(self, settings: ServerSettings) -> None:
        self.max_calls = settings.max_concurrent_calls
        self.max_message_bytes = settings.max_message_bytes
        self.max_buffered_bytes = settings.max_buffered_bytes
        self.num_calls = 0

    def enter(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """One call more, which must `leave`.  Raises TooLarge or TooManyCalls when it is not let in."""
        if sum(len(key) + len(value) + FIELD_OVERHEAD_BYTES for key, value in metadata) > MAX_METADATA_BYTES:
            raise self.too_much_metadata()
        if self.num_calls >= self.max_calls:
            raise self.too_many_calls()
        self.num_calls += 1

    def leave(self) -> None:
        """One call less."""
        self.num_calls -= 1

    def too_many_calls(self) -> HeadraceError:
        """Of calls when there are as many as there may be."""
        return TooManyCalls(self.max_calls)

    def too_much_metadata(self) -> HeadraceError:
        """Of a call with more than it may say of itself."""
        return TooLarge("metadata", MAX_METADATA_BYTES)

    def too_large(self) -> HeadraceError:
        """Of a message."""
        return TooLarge("message", self.max_message_bytes, "server.max_message_bytes")

    def buffers_full(self) -> HeadraceError:
        """Of a compressed message, when others have become as large together as they may."""
        return BuffersFull(self.max_buffered_bytes)


def unreadable() -> HeadraceError:
    """Of a message that is none of its method, or not compressed as it says."""
    return InvalidSpec([Violation("", "the bytes are not a message of the type that this method takes")])
