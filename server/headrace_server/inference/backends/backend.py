"""What a lane needs of a runtime: open a program, run it on arrays, say what really runs."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from headrace_server import _native
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from headrace_server.tensors import Signature, Tensors


class DeviceBroken(Exception):
    """The device answers nothing any more, and will not until the process has ended."""

    def __init__(self, device: str, problem: str) -> None:
        super().__init__(f"{device} is broken: {problem}")
        self.device = device


class Session(Protocol):
    """One opened program.  It is opened, used and closed by the one thread that owns it."""

    @property
    def device(self) -> str:
        """Where it really runs: "cpu" or "cuda:0"."""
        ...

    @property
    def precision(self) -> Precision:
        """What most of its arithmetic really runs in."""
        ...

    def run(self, inputs: Tensors) -> Tensors:
        """All outputs of the signature, for inputs that fit it.  Every run returns new arrays, or views of its inputs.

        Raises DeviceOutOfMemory, or whatever the runtime raises.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@runtime_checkable
class HasProgram(Protocol):
    """A session whose batches a lane may run without Python; `run` is for the others."""

    @property
    def program(self) -> _native.Program | None:
        """What gives the same outputs, in the order of the signature; None: only `run` will do."""
        ...

    def judge(self, failure: Exception) -> Exception:
        """What `run` would have raised, when the program has raised this."""
        ...


@runtime_checkable
class SharesWeights(Protocol):
    """A session that one lane has for itself, although its weights are those of others."""

    def twin(self) -> Session:
        """A session for another lane with the same weights."""
        ...


@runtime_checkable
class ChoosesThreads(Protocol):
    """A session whose runs may have any number of threads, as whoever opened it decides."""

    def with_threads(self, num_threads: int) -> Session:
        """A session with the same weights, and so many threads a run; closed before this one."""
        ...


class Backend(Protocol):
    """One runtime."""

    @property
    def name(self) -> str:
        """As in the contract: "onnxruntime" or "torch"."""
        ...

    @property
    def format(self) -> ArtifactFormat:
        """What it runs."""
        ...

    def open(self, path: Path, signature: Signature) -> Session:
        """Read a program and make it ready; blocks, for long.

        Raises InvalidModel when the program is not what its signature says, or whatever the runtime raises.
        """
        ...
