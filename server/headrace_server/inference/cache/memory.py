"""Entries in memory, bounded in bytes; the least recently used leave first.  Belongs to the event loop."""

from collections import OrderedDict

OVERHEAD_BYTES = 256
"""What the books of one entry take, roughly."""


class MemoryTier:
    """At most `max_bytes` of entries, none larger than `max_entry_bytes`."""

    def __init__(self, max_bytes: int, max_entry_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_entry_bytes
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> bytes | None:
        """The entry of a key, which is the newest from now on."""
        content = self._entries.get(key)
        if content is not None:
            self._entries.move_to_end(key)
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep an entry; one that is too large is left out."""
        self.drop(key)
        if len(content) > self._max_entry_bytes or len(content) + OVERHEAD_BYTES > self._max_bytes:
            return
        self._entries[key] = content
        self.num_bytes += len(content) + OVERHEAD_BYTES
        while self.num_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= len(oldest) + OVERHEAD_BYTES

    def drop(self, key: str) -> None:
        """Forget an entry, if there is one."""
        content = self._entries.pop(key, None)
        if content is not None:
            self.num_bytes -= len(content) + OVERHEAD_BYTES
