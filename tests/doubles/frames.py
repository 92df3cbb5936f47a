"""HTTP/2 by hand, for callers who do what no client library does: frames, requests that begin, connections."""

import socket
import struct

from tests.doubles.idle_connections import EMPTY_SETTINGS, PREFACE

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
HEAD_BYTES = 9
LARGEST_FRAME = 1 << 14


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """One frame."""
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def headers(path: bytes, stream: int, *, is_end: bool = False, more: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A request that begins: literal fields, nothing indexed."""
    fields = (
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")),
        *((b"content-type", b"application/grpc"), (b"te", b"trailers")),
        *more,
    )
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
    return frame(HEADERS, END_HEADERS | is_end, stream, block)


def message(content: bytes, stream: int, *, is_end: bool = True, is_compressed: bool = False) -> bytes:
    """One message of gRPC, in frames as large as they may be before anything else was agreed on."""
    whole = struct.pack(">BI", is_compressed, len(content)) + content
    pieces = [whole[at : at + LARGEST_FRAME] for at in range(0, len(whole), LARGEST_FRAME)]
    last = END_STREAM if is_end else 0
    return b"".join(frame(DATA, last if piece is pieces[-1] else 0, stream, piece) for piece in pieces)


def dial(port: int, *frames: bytes) -> socket.socket:
    """A connection to a port of this machine on which these were sent."""
    line = socket.create_connection(("127.0.0.1", port), 30)
    line.sendall(PREFACE + EMPTY_SETTINGS + b"".join(frames))
    return line


def ending_of(line: socket.socket, stream: int, seconds: float = 60) -> bytes:
    """Everything until the other side ends a stream, or the connection.  Raises TimeoutError."""
    line.settimeout(seconds)
    said = b""
    at = 0
    while True:
        while len(said) >= at + HEAD_BYTES:
            size = int.from_bytes(said[at : at + 3], "big")
            kind, flags = said[at + 3], said[at + 4]
            number = int.from_bytes(said[at + 5 : at + HEAD_BYTES], "big") & 0x7FFFFFFF
            if len(said) < at + HEAD_BYTES + size:
                break
            at += HEAD_BYTES + size
            if kind == GOAWAY or (number == stream and (kind == RST_STREAM or flags & END_STREAM)):
                return said
        content = line.recv(1 << 16)
        if not content:
            return said
        said += content


def _text(content: bytes) -> bytes:
    if len(content) < 127:
        return bytes([len(content)]) + content
    rest, number = len(content) - 127, [127]
    while rest >= 128:
        number.append(rest % 128 | 128)
        rest //= 128
    return bytes([*number, rest]) + content
