"""Messages that callers have compressed, made readable within bounds, where grpc.aio holds the public port.

gRPC would do it itself, but looks at the size of a message only before: 64 KiB of gzip become 64 MiB.  So it is told to
leave messages as they come.  grpc.aio does not say then which ones are compressed; their bytes do.  No message begins
like gzip, because no field has its first byte.  A stream of zlib ("deflate") may look like a field that nobody knows,
but it ends just where its checksum says that all of it is right, which no message does by chance.  The native door is
told, and has its own way (`native/door/inflation.h`).
"""

import zlib

_GZIP = b"\x1f\x8b"
_ZLIB = 0x78
"""The method, and the window that every compressor of gRPC uses (RFC 1950)."""
_CHECKED = 31
"""Of two bytes that begin a stream of zlib, as one number, this is a divisor."""


def inflated(content: bytes, limit: int) -> bytes:
    """What a message was before it was compressed; itself when it was not, or is not what it looks like.

    Never costs more than `limit` bytes and one; whoever gets more than `limit` has met a message that is too large.
    """
    if content[:2] == _GZIP:
        window = zlib.MAX_WBITS | 16
    elif len(content) > 1 and content[0] == _ZLIB and (content[0] << 8 | content[1]) % _CHECKED == 0:
        window = zlib.MAX_WBITS
    else:
        return content
    stream = zlib.decompressobj(window)
    try:
        readable = stream.decompress(content, limit + 1)
    except zlib.error:
        return content
    is_whole = stream.eof and not stream.unused_data
    return readable if is_whole or len(readable) > limit else content
