"""Reads an upload: a header, then the bytes.  Knows what uploads have in common, and no resource."""

from collections.abc import AsyncIterator
from typing import Any

from headrace_server.errors import InvalidSpec, Violation


async def read_header(requests: AsyncIterator[Any]) -> Any:
    """The header that opens an upload.  Raises InvalidSpec when something else comes first, or nothing."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidSpec([Violation("header", "must be the first message")])
    return first.header


async def read_chunks(requests: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The bytes that follow the header.  Raises InvalidSpec when anything but bytes comes."""
    async for request in requests:
        match request.WhichOneof("part"):
            case "chunk":
                yield request.chunk
            case "header":
                raise InvalidSpec([Violation("header", "was sent already; only chunks may follow it")])
            case _:
                raise InvalidSpec([Violation("chunk", "is not set")])
