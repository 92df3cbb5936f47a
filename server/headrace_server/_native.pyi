# The native module, built from `native/`.
#
# Everything here checks its arguments before it touches memory and refuses them with a sentence: ValueError for sizes
# and addresses, TypeError for element types that are not converted, BufferError for memory that overlaps or cannot be
# written.  `kernels/`, `devices.py`, `inference/` and `rpc/door.py` are its faces; nothing else calls it.

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# What the converting code may use on this processor, the best first: "avx512", "avx2", "portable".
instruction_sets: tuple[str, ...]

# Write the rows of all sources into the first rows of `into`; return how many.  `instruction_set` is one of
# `instruction_sets`, or "" for the best; all give the same results.
def gather(sources: Sequence[NDArray[np.generic]], into: NDArray[np.generic], *, instruction_set: str = "") -> int: ...

# Write the first rows of `batch` into each array in turn, as many as it has; return how many.
def scatter(batch: NDArray[np.generic], into: Sequence[NDArray[np.generic]], *, instruction_set: str = "") -> int: ...

# The gate between serving and training: shared memory and a futex in a file; see `kernels/gate.py`.  OSError for a file
# that cannot be opened, or with which another process serves; ValueError for one that is no gate.
class Gate:
    @staticmethod
    def serve(path: str) -> Gate: ...
    @staticmethod
    def train(path: str) -> Gate: ...
    def enter(self) -> None: ...
    def leave(self, seconds: float) -> None: ...
    def wait(self, max_seconds: float) -> float: ...
    @property
    def busy(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def latency_seconds(self) -> float: ...

# Whether the module was built with CUDA code; it imports without a driver either way.
cuda_built: bool

# How many CUDA devices there are, and why there are none.  Never raises.
def cuda_device_count() -> tuple[int, str]: ...

# The name of a CUDA device and its compute capability, major and minor; makes no context.  RuntimeError where there is
# no such device or a CUDA call fails.
def cuda_device(number: int) -> tuple[str, int, int]: ...

# The free and all bytes of a CUDA device, whoever has taken the rest.  The first call of a process makes it a context
# there, which takes some hundred megabytes.  RuntimeError where there is no such device or a CUDA call fails.
def cuda_memory(device: int) -> tuple[int, int]: ...

# Enqueue a gather of contiguous device blocks, each an (address, number of rows); return how many rows.  Types are
# names of the contract ("FP32").  `stream` is a cudaStream_t; 0 is the default stream.  RuntimeError where there is no
# CUDA device or a CUDA call fails.
def cuda_gather(
    sources: Sequence[tuple[int, int]],
    source_type: str,
    into: tuple[int, int],
    into_type: str,
    row_elements: int,
    stream: int,
) -> int: ...

# Enqueue a scatter of a contiguous device block; the reverse of `cuda_gather`.
def cuda_scatter(
    batch: tuple[int, int],
    batch_type: str,
    into: Sequence[tuple[int, int]],
    into_type: str,
    row_elements: int,
    stream: int,
) -> int: ...

# What runs the batches of a model without Python; `inference/lane.py` gives it to the batcher.
class Program: ...

# What ONNX Runtime says when something went wrong.  Its subclasses are named as those of the runtime's own package.
class OnnxRuntimeError(RuntimeError): ...

# The version of the runtime in this shared library, which stays open.  RuntimeError when it is none.
def onnxruntime_version(library: str) -> str: ...

# One ONNX program on the CPU, with so many threads for each run.  Inputs and outputs in the order of the names; what is
# returned are new arrays.  Any thread; neither opening nor running holds the GIL.  OnnxRuntimeError.
class OnnxProgram(Program):
    def __init__(
        self,
        library: str,
        path: str,
        *,
        num_threads: int,
        optimises: bool,
        input_names: Sequence[str],
        output_names: Sequence[str],
    ) -> None: ...
    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]: ...

# Who runs plans in this process; `inference/processors.py` is its face.
class Processors:
    # How long models that met are taken to meet again; None: as long as is best.
    def __init__(self, memory_seconds: float | None = None) -> None: ...

# The runs of one model.
class Runs:
    def __init__(self, processors: Processors) -> None: ...
    # What else runs, or is taken to.
    def begin(self) -> Literal["none", "own", "others"]: ...
    def end(self) -> None: ...

# Programs of one model: up to so many rows, the variant that answers name, and what runs beside another model, while
# more calls of this one run or wait, and alone.
class Choice(Program):
    def __init__(self, buckets: Sequence[tuple[int, int, Program, Program, Program]], runs: Runs) -> None: ...

# The batcher of both doors; `inference/batcher.py` is its face, and `native/batching/batcher.h` says what it promises.

# Filled by lanes without the GIL, emptied by one event loop, which watches `fileno()`.
class Mailbox:
    def __init__(self) -> None: ...
    def fileno(self) -> int: ...
    # The calls that have ended since.
    def empty(self) -> list[Ticket]: ...

class Refusal:
    @property
    def kind(self) -> Literal["no_permit", "late", "expired", "closed", "error"]: ...
    @property
    def why(self) -> str: ...
    @property
    def queue_seconds(self) -> float: ...
    @property
    def waiting_rows(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def retry_after_seconds(self) -> float: ...
    # What the batch failed with, or a new one of what the batcher was closed with; None when it was not closed but
    # destroyed.
    @property
    def error(self) -> BaseException | None: ...

class Timing:
    @property
    def queue_seconds(self) -> float: ...
    @property
    def assemble_seconds(self) -> float: ...
    @property
    def compute_seconds(self) -> float: ...
    @property
    def finished_at(self) -> float: ...
    @property
    def batch_rows(self) -> int: ...
    @property
    def batch_calls(self) -> int: ...
    @property
    def variant(self) -> int: ...

# One call from Python.
class Ticket:
    @property
    def future(self) -> Future[Any]: ...  # of Answer
    # None when it was answered.
    @property
    def refusal(self) -> Refusal | None: ...
    @property
    def timing(self) -> Timing: ...
    # What the model returned, the first row there, the number of rows, and whether all of it is this call's.
    @property
    def rows(self) -> list[tuple[dict[str, NDArray[np.generic]], int, int, bool]]: ...

class Meters:
    def __init__(self, latency_bounds: Sequence[float], row_bounds: Sequence[float]) -> None: ...
    def answered(
        self,
        rows: int,
        queue_seconds: float,
        assemble_seconds: float,
        compute_seconds: float,
        respond_seconds: float,
        total_seconds: float,
    ) -> None: ...
    def ended(self, outcome: str, seconds: float) -> None: ...
    def responded(self, seconds: float) -> None: ...
    # `inference/meters.py` knows the keys.
    def read(self) -> dict[str, Any]: ...

# Lanes that wait without the GIL, for one batcher or for several.
class LaneGroup:
    def __init__(self, num_lanes: int, clock: Callable[[], float] | None = None) -> None: ...
    @property
    def num_lanes(self) -> int: ...
    @property
    def is_closed(self) -> bool: ...
    # Runs the batches of models with a program of their own, and returns those that it does not, or failed with.  None
    # when the group was closed, the time has passed, or somebody rang.
    def take(self, lane: int, timeout_seconds: float | None = None) -> Batch | None: ...
    def ring(self, lane: int) -> None: ...
    def close(self) -> None: ...

class Batch:
    @property
    def batcher(self) -> Batcher: ...
    # By name; empty when it is over.
    @property
    def inputs(self) -> dict[str, NDArray[np.generic]]: ...
    @property
    def rows(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def lane(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def assemble_seconds(self) -> float: ...
    # What the model's own program has raised; None when nothing has run it yet.
    @property
    def failure(self) -> Exception | None: ...

class Batcher:
    def __init__(
        self,
        *,
        max_batch_rows: int,
        max_batch_bytes: int,
        max_waiting_rows: int,
        max_waiting_bytes: int,
        max_delay_seconds: float,
        is_batchable: bool,
        input_names: Sequence[str],
        output_names: Sequence[str],
        lanes: LaneGroup,
        meters: Meters,
        as_failure: Callable[[BaseException | str], BaseException],
    ) -> None: ...
    def submit(
        self,
        inputs: Mapping[str, NDArray[np.generic]],
        nbytes: int,
        priority: int,
        deadline: float | None,
        future: Future[Any],
        mailbox: Mailbox,
    ) -> Ticket | Refusal: ...
    def leave(self, ticket: Ticket) -> bool: ...
    def expire(self, ticket: Ticket) -> None: ...
    def settle(
        self, batch: Batch, outputs: Mapping[str, NDArray[np.generic]], compute_seconds: float, variant: int = 0
    ) -> None: ...
    def settle_and_take(
        self,
        batch: Batch,
        outputs: Mapping[str, NDArray[np.generic]],
        compute_seconds: float,
        variant: int = 0,
        timeout_seconds: float | None = None,
    ) -> Batch | None: ...
    def fail(self, batch: Batch, problem: BaseException | str) -> None: ...
    def set_input_types(self, lane: int, types: Sequence[str | None]) -> None: ...
    def set_program(self, lane: int, program: Program | None, gate: Gate | None = None) -> None: ...
    def run_alone(self) -> None: ...
    def drain(self) -> None: ...
    def close(self, why: Callable[[], BaseException], outcome: str, abandon: bool = False) -> None: ...
    def when_idle(self, future: Future[Any], mailbox: Mailbox) -> None: ...
    @property
    def calls_in_flight(self) -> int: ...
    @property
    def waiting_rows(self) -> int: ...

# Whether the module was built with gRPC for C++; without it there is no `Door`.
door_built: bool

# The native door: it owns the public port and passes what it does not answer to the complete server.
class Door:
    # `address` as gRPC has it, port 0 for any that is free; `complete_server` "unix:/path".  `gone` and those after it
    # are statuses (code, message, serialized google.rpc.Status): of calls for which the complete server is no longer
    # there, of calls over one of the limits, and of those whose message cannot be read.  The next three are PEM files:
    # all empty, no TLS; without `client_authority` no certificate is asked of callers.  Without a `plane` every call is
    # passed on.
    def __init__(
        self,
        *,
        address: str,
        complete_server: str,
        max_message_bytes: int,
        max_metadata_bytes: int,
        max_buffered_bytes: int,
        max_concurrent_calls: int,
        gone: tuple[int, str, bytes],
        too_many_calls: tuple[int, str, bytes],
        too_much_metadata: tuple[int, str, bytes],
        too_large: tuple[int, str, bytes],
        no_room: tuple[int, str, bytes],
        malformed: tuple[int, str, bytes],
        certificate: str = "",
        key: str = "",
        client_authority: str = "",
        plane: Plane | None = None,
    ) -> None: ...

    # Take the port and begin to accept; False when it is not to be had.  Calls wait until `open`.
    def bind(self) -> bool: ...

    # The complete server is there.
    def open(self) -> None: ...

    # Take no calls any more and wait, at most so long, for those under way; what is left is cancelled.  Blocks.
    def close(self, grace_seconds: float) -> None: ...

    # Cancel what a `close` on another thread waits for.
    def hurry(self) -> None: ...
    @property
    def port(self) -> int: ...
    @property
    def calls_in_flight(self) -> int: ...

# A version that the plane may answer with.  Of each input and output: name, element type, shape (-1: any length),
# whether only finite numbers are taken.  `provenance` is what answers say of the program that ran, by variant: fields
# of a PredictResponse and fields of a ModelInferResponse, encoded.
class ServedVersion:
    def __init__(
        self,
        *,
        name: str,
        batcher: Batcher,
        inputs: Sequence[tuple[str, str, Sequence[int], bool, Sequence[str]]],
        outputs: Sequence[tuple[str, str, Sequence[int], bool, Sequence[str]]],
        takes_rows: bool,
        provenance: Sequence[tuple[bytes, bytes]],
    ) -> None: ...

# The native data plane.  `tell_error` makes a code, a message and a serialized google.rpc.Status of what a model
# raised; it is called on threads of lanes and timers.
class Plane:
    def __init__(
        self,
        *,
        latency_bounds: Sequence[float],
        stream_window: int,
        tell_error: Callable[[Exception], tuple[int, str, bytes]],
    ) -> None: ...

    # Replace all routes: model or model@alias, version or nothing, what answers, an encoded ModelMetadataResponse.
    def turn(self, routes: Sequence[tuple[str, str, ServedVersion, bytes]]) -> None: ...

    # The name of the version that these mean now.
    def find(self, model: str, version: str) -> str | None: ...
    def set_serving(self, is_serving: bool) -> None: ...
    def drain(self) -> None: ...
    @property
    def calls_in_flight(self) -> int: ...

    # By method: calls by code, counts of each latency bucket and above all, the sum of seconds, passed calls by reason.
    def read_counts(self) -> dict[str, tuple[dict[int, int], list[int], float, dict[str, int]]]: ...

    # Record this share of the calls whose callers do not say; negative: none at all.
    def trace(self, ratio: float) -> None: ...
    def take_spans(self) -> list[dict[str, Any]]: ...
    @property
    def num_spans_left_out(self) -> int: ...

# The data plane's readers and writers, for its tests.  A message is given in pieces, cut anywhere; None: not read here.
class plane_testing:  # noqa: N801 - a module
    @staticmethod
    def read_predict(message: Sequence[bytes]) -> dict[str, Any] | None: ...
    @staticmethod
    def read_infer(message: Sequence[bytes]) -> dict[str, Any] | None: ...
    @staticmethod
    def read_stream_request(message: Sequence[bytes]) -> tuple[str, bytes, float | None] | None: ...
    @staticmethod
    def read_model_question(message: Sequence[bytes]) -> tuple[str, str] | None: ...

    # `form` 0 to 3: PredictResponse, PredictStreamResponse, ModelInferResponse, ModelStreamInferResponse.
    # `arrays`: name, type, shape, bytes.  `slices`: rows of each; none for a model that takes no rows.
    # `times`: queue, assemble, compute and respond in seconds, rows, calls.
    @staticmethod
    def write_answer(
        form: int,
        request_id: str,
        arrays: Sequence[tuple[str, str, Sequence[int], bytes]],
        slices: Sequence[int],
        is_raw: bool,
        times: tuple[float, float, float, float, int, int],
        predict_provenance: bytes,
        infer_provenance: bytes,
    ) -> bytes: ...

    # Seconds that it takes to read a request and to write an answer with one output of 10 FP32, on average.
    @staticmethod
    def time_answers(is_predict: bool, request: bytes, num_times: int) -> float: ...
    @staticmethod
    def predict_answer(request_id: str, response: Sequence[bytes], /) -> bytes: ...
    @staticmethod
    def predict_refusal(request_id: str, code: int, message: str, details: bytes, /) -> bytes: ...
    @staticmethod
    def infer_answer(response: Sequence[bytes], /) -> bytes: ...
    @staticmethod
    def infer_refusal(request_id: str, code: int, message: str, details: bytes, /) -> bytes: ...

    # Code, message, and a serialised google.rpc.Status.
    @staticmethod
    def refusal_status(
        is_expired: bool,
        why: str,
        queue_seconds: float,
        waiting_rows: int,
        limit: int,
        retry_after_seconds: float,
        version: str,
    ) -> tuple[int, str, bytes]: ...
    @staticmethod
    def timed_out(timeout_seconds: float, /) -> tuple[int, str, bytes]: ...
    @staticmethod
    def draining() -> tuple[int, str, bytes]: ...
    @staticmethod
    def invalid_spec(field: str, description: str, /) -> tuple[int, str, bytes]: ...
    @staticmethod
    def quote(text: str, /) -> str: ...
