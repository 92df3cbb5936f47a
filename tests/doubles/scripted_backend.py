"""A runtime without models: its programs do what the test says, and remember what was done to them."""

import threading
from collections.abc import Callable
from pathlib import Path

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from headrace_server.tensors import Signature, Tensors


class ScriptedSession:
    """Runs `act`, by default an echo of the first input under the name of each output."""

    def __init__(self, backend: "ScriptedBackend", signature: Signature) -> None:
        self.device = backend.device
        self.precision = Precision.FP32
        self._backend = backend
        self._signature = signature
        self._thread = threading.get_ident()

    def run(self, inputs: Tensors) -> Tensors:
        assert threading.get_ident() == self._thread, "a session is touched by its own thread only"
        if self._backend.act is not None:
            return self._backend.act(inputs)
        first = next(iter(inputs.values()))
        return {spec.name: first.copy() for spec in self._signature.outputs}

    def close(self) -> None:
        assert threading.get_ident() == self._thread
        self._backend.count_open(-1)


class ScriptedBackend:
    """Opens scripted sessions; `may_open` holds every opening back while it is clear."""

    name = "onnxruntime"
    format = ArtifactFormat.ONNX

    def __init__(self) -> None:
        self.may_open = threading.Event()
        self.may_open.set()
        self.act: Callable[[Tensors], Tensors] | None = None
        self.failure: BaseException | None = None
        self.num_opened = 0
        self.num_open = 0
        self.most_open = 0
        self.device = "cpu"
        self.room: int | None = None
        """How many sessions its device has memory for; None: for any number."""
        self._lock = threading.Lock()

    def open(self, path: Path, signature: Signature) -> ScriptedSession:
        with self._lock:
            self.num_opened += 1
        assert self.may_open.wait(30)
        if self.failure is not None:
            raise self.failure
        if self.room is not None and self.num_open >= self.room:
            raise DeviceOutOfMemory(self.device, missing_bytes=1)
        self.count_open(1)
        return ScriptedSession(self, signature)

    def count_open(self, change: int) -> None:
        with self._lock:
            self.num_open += change
            self.most_open = max(self.most_open, self.num_open)
