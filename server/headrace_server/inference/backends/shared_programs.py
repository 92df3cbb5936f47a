"""Programs that are read once, however many lanes and plans want the same file at the same time.

For what any number of threads may run at once.  A program lives for as long as anybody has it.
"""

import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from headrace_server import _native
from headrace_server.storage.file_state import FileState


class SharedPrograms:
    """Those that somebody has.  Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: WeakValueDictionary[FileState, _native.OnnxProgram] = WeakValueDictionary()
        self._turns: WeakValueDictionary[FileState, threading.Lock] = WeakValueDictionary()
        """Of those who want a file just now: the first builds, the others wait for it."""

    def open(self, file: FileState, build: Callable[[], _native.OnnxProgram]) -> _native.OnnxProgram:
        """The program of a file, built if nobody has it.  Raises what `build` raises; then the next one tries it."""
        with self._lock:
            turn = self._turns.get(file)
            if turn is None:
                turn = self._turns[file] = threading.Lock()
        with turn:
            program = self._opened.get(file)
            if program is None:
                program = self._opened[file] = build()
            return program
