"""Connections of HTTP/2 that ask nothing: opened, welcomed, and kept; they answer pings, as every client must.

Bare sockets and one thread for all of them, so that what a crowd costs is what it costs the server.
"""

import resource
import selectors
import socket
import threading
import time
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS, PING, GOAWAY, ACK = 4, 6, 7, 1
SETTINGS_ACK = bytes([0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0])
PING_ACK_HEAD = bytes([0, 0, 8, PING, ACK, 0, 0, 0, 0])
MOST_UNDER_WAY = 64
"""A listener's queue is short."""
PORTS_OF_ONE_ADDRESS = 20_000
"""Fewer than a machine has for outgoing connections: a caller of a server is one address and one port."""
KEPT_FOR_OTHERS = 200
"""Open files that a process needs for everything else."""


def most_connections() -> int:
    """How many this process may have, after it has taken all that it may of its limit of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard - KEPT_FOR_OTHERS


class IdleConnections:
    """So many of them to one port of this machine, until the block ends."""

    def __init__(self, port: int, count: int, seconds: float = 120) -> None:
        """Open them all.  Raises TimeoutError when not all are welcomed in time."""
        self._selector = selectors.DefaultSelector()
        self._callers: list[_Caller] = []
        self._is_ending = threading.Event()
        self._welcomed = threading.Semaphore(0)
        self._answering = threading.Thread(target=self._answer, daemon=True)
        self._answering.start()
        try:
            until = time.monotonic() + seconds
            for number in range(count):
                if number >= MOST_UNDER_WAY:
                    self._wait_for_a_welcome(until)
                self._open(port, number)
            for _ in range(min(MOST_UNDER_WAY, count)):
                self._wait_for_a_welcome(until)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def num_open(self) -> int:
        """Those that the server has not hung up on."""
        return sum(caller.is_open for caller in self._callers)

    def close(self) -> None:
        """Hang up."""
        self._is_ending.set()
        self._answering.join()
        self._selector.close()
        for caller in self._callers:
            caller.line.close()

    def _wait_for_a_welcome(self, until: float) -> None:
        if not self._welcomed.acquire(timeout=max(0.0, until - time.monotonic())):
            raise TimeoutError(f"not all of {len(self._callers)} connections were welcomed")

    def _open(self, port: int, number: int) -> None:
        source = f"127.0.0.{2 + number // PORTS_OF_ONE_ADDRESS}"
        line = socket.create_connection(("127.0.0.1", port), 20, source_address=(source, 0))
        line.setblocking(False)
        line.send(PREFACE + EMPTY_SETTINGS)
        caller = _Caller(line)
        self._callers.append(caller)
        self._selector.register(line, selectors.EVENT_READ, caller)

    def _answer(self) -> None:
        while not self._is_ending.is_set():
            for key, _ in self._selector.select(0.05):
                caller: _Caller = key.data
                if caller.answer_what_has_come():
                    self._welcomed.release()
                if not caller.is_open:
                    self._selector.unregister(caller.line)


class _Caller:
    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.is_open = True
        self._is_welcomed = False
        self._unread = b""

    def answer_what_has_come(self) -> bool:
        """Whether the server has welcomed it just now: it has sent its settings."""
        was_welcomed = self._is_welcomed
        try:
            content = self.line.recv(1 << 14)
            self.is_open = bool(content)
            for kind, is_answer, payload in self._frames(content):
                if kind == SETTINGS and not is_answer:
                    self._is_welcomed = True
                    self.line.send(SETTINGS_ACK)
                elif kind == PING and not is_answer:
                    self.line.send(PING_ACK_HEAD + payload)
                elif kind == GOAWAY:
                    self.is_open = False
        except OSError:
            self.is_open = False
        return self._is_welcomed and not was_welcomed

    def _frames(self, content: bytes) -> list[tuple[int, bool, bytes]]:
        """Kind, whether it answers one of ours, and payload of those that are complete."""
        self._unread += content
        frames = []
        while len(self._unread) >= 9:
            size = 9 + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < size:
                break
            frames.append((self._unread[3], bool(self._unread[4] & ACK), self._unread[9:size]))
            self._unread = self._unread[size:]
        return frames
