"""A compiled library of a GPU that several lanes run, each on its own stream, and record into graphs of their own.

The weights are on the device once.  What the library does between two runs (it keeps events, to know when one of its
runners is free) cannot be recorded; without that, one thread at a time may call it.  That costs nothing: a call only
begins work, and a size of batch that has its graph needs none.
"""

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.compiled_library import CompiledLibrary, CompiledLibraryFailed


class Witness(Protocol):
    """Who can tell what a failed run was about: the library itself says only that it has failed."""

    @property
    def device(self) -> str:
        """Which device: "cuda:0"."""
        ...

    @property
    def stream(self) -> int:
        """What the calling thread works on; 0 for the default stream."""
        ...

    @property
    def num_refusals(self) -> int:
        """How often the device had no memory for what was asked of it, since the process began."""
        ...

    def check(self) -> None:
        """Raise what the device says when it answers nothing any more."""
        ...


class OnStreams:
    """One library, called by any thread on the stream that it works on.  Closed with the last reference."""

    def __init__(self, library: CompiledLibrary, witness: Witness) -> None:
        self._library = library
        self._witness = witness
        self._turn = threading.Lock()
        # Lanes come and go, and the last one has the weights with it; when the process ends, the driver goes first.
        weakref.finalize(self, library.close).atexit = False

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Begin to run.  Raises CompiledLibraryFailed, DeviceOutOfMemory, or what a device says that is lost."""
        with self._turn:
            refusals = self._witness.num_refusals
            try:
                return self._library.run_alone(inputs, self._witness.stream)
            except CompiledLibraryFailed as error:
                if self._witness.num_refusals > refusals:
                    raise DeviceOutOfMemory(self._witness.device) from error
                self._witness.check()
                raise


class CudaWitness:
    """Asks torch, which gives the memory that the library computes in."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        self._torch = torch

    @property
    def stream(self) -> int:
        """See Witness."""
        return int(self._torch.cuda.current_stream(self.device).cuda_stream)

    @property
    def num_refusals(self) -> int:
        """See Witness."""
        return int(self._torch.cuda.memory_stats_as_nested_dict(self.device).get("num_ooms", 0))

    def check(self) -> None:
        """See Witness.  A stream that is being recorded cannot be waited for; what is lost shows at the next run."""
        if not self._torch.cuda.is_current_stream_capturing():
            self._torch.cuda.current_stream(self.device).synchronize()
