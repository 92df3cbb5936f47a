"""Compiles a plan with AOTInductor, in a process of its own.

`python -P -m headrace_server.inference.plans.compiling REQUEST.json`.  Compiling takes from seconds to minutes and
gigabytes of memory, and nobody waits for it: so it is as nice as a process can be, and given up when its time is over.
Calls are answered meanwhile, and what was measured before it is not lost when it dies.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from headrace_server.inference.plans.difference import measure_difference, why_intolerable
from headrace_server.inference.plans.ending import die_with_parent
from headrace_server.inference.plans.plan import CPU, Plan
from headrace_server.models.calibration import read_rows
from headrace_server.niceness import be_nice
from headrace_server.precision import Precision, Tolerances
from headrace_server.tensors import Array, Signature, TensorSpec

LEAST_PRIORITY = 19
LAST_WORDS_BYTES = 4000
SPARED = 0.75
"""The share of what is tolerated that a plan in INT8 uses while it is made."""
# Threads are decided by each run, not by the compiler; weights are folded into the layout that is fastest.
_ON_CPU: dict[str, Any] = {"cpp.dynamic_threads": True, "freezing": True}
# What is between products of bytes may multiply and add at once; what is long to compute of a row is kept until its
# range is known, and not computed again.
_IN_BYTES: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast", "realize_cpu_opcount_threshold": 30}
# Kernels lie in the library, which so is all there is to a plan.
_ON_GPU: dict[str, Any] = {"aot_inductor.embed_kernel_binary": True}


class CannotCompile(Exception):
    """The compiler did not make a library of the program, or not in time."""


class CompileRequest(BaseModel):
    """All that the process needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    source: Path
    signature: Signature
    shapes: dict[str, tuple[int, ...]]
    """Of an example of each input, which lengths that are free are taken from; its rows do not matter."""
    target: Path
    rows: Path | None = None
    """Calibration rows; a plan in INT8 is made with them."""
    tolerances: Tolerances = Tolerances()
    """What a plan in INT8 leaves as it is until it meets them, with something to spare."""
    search_seconds: float = 60.0
    """How long it looks for what that is."""


def compile_apart(request: CompileRequest, seconds: float) -> None:
    """Compile in a process of its own, for so many seconds at most.  Raises CannotCompile, OSError."""
    missing = missing_means(request.plan, os.environ)
    if missing:
        raise CannotCompile(f"compiling it for {request.plan.device} needs {missing}")
    request_file, words = request.target.with_suffix(".json"), request.target.with_suffix(".log")
    request_file.write_text(request.model_dump_json(), encoding="utf-8")
    command = (sys.executable, "-P", "-m", "headrace_server.inference.plans.compiling", str(request_file))
    started_at = time.monotonic()
    with words.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603 - ourselves
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise CannotCompile(f"compiling it took more than {seconds:.0f} s, and was given up") from None
        finally:
            _end(process)
    if code != 0 or not request.target.exists():
        took = time.monotonic() - started_at
        raise CannotCompile(f"compiling it failed after {took:.0f} s ({code}): {_last_words(words)}")


def missing_means(plan: Plan, environment: Mapping[str, str]) -> str:
    """What this machine lacks to compile a plan; empty when there is all of it.  Imports nothing."""
    path = environment.get("PATH")
    compiler = environment.get("CXX", "g++")
    if shutil.which(compiler, path=path) is None:
        return f"a C++ compiler, and there is no {compiler}"
    if plan.device == CPU:
        return ""
    if find_spec("triton") is None:
        return "Triton, which is not installed"
    home = _cuda_home(environment)
    if not (home / "include" / "cuda.h").exists():
        return f"the headers of CUDA, and there is no {home / 'include' / 'cuda.h'} (CUDA_HOME says where they are)"
    return ""


def _cuda_home(environment: Mapping[str, str]) -> Path:
    """Where torch looks for CUDA's own files."""
    said = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    if said:
        return Path(said)
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    return Path(nvcc).parent.parent if nvcc is not None else Path("/usr/local/cuda")


def main(arguments: list[str]) -> int:
    """Compile what the file named by the only argument asks for."""
    die_with_parent()
    be_nice(os.getpid(), LEAST_PRIORITY)
    warnings.simplefilter("ignore")  # of exporters, about themselves
    _compile(CompileRequest.model_validate_json(Path(arguments[0]).read_bytes()))
    return 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process with its compilers."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def _last_words(path: Path) -> str:
    lines = path.read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "without a word"


def _compile(request: CompileRequest) -> None:
    import torch
    from torch import Tensor, nn
    from torch.export.passes import move_to_device_pass

    from headrace_server.inference.backends.torch_export import order_of
    from headrace_server.inference.backends.torch_lowering import lower

    plan, signature = request.plan, request.signature
    is_on_gpu = plan.device != CPU
    program = torch.export.load(str(request.source))
    if is_on_gpu:
        program = move_to_device_pass(program, plan.device)
    call_spec = program.call_spec
    short = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(plan.precision)
    inputs, outputs = order_of(request.source, signature)
    if plan.precision is Precision.INT8:
        inner: nn.Module = _quantized(request, program, inputs, outputs)
    elif short is not None:
        # On a GPU rows are converted while they are gathered there.
        inner = lower(program, short, keeps_norms=plan.keeps_norms, takes_short=is_on_gpu)
    else:
        inner = program.module()

    class Flat(nn.Module):
        """The program with a flat list of inputs and of outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            args, keywords = torch.utils._pytree.tree_unflatten(list(inputs), call_spec.in_spec)  # noqa: SLF001
            results, _ = torch.utils._pytree.tree_flatten(self.inner(*args, **keywords))  # noqa: SLF001
            return tuple(results)

    example = tuple(_example(request.shapes[spec.name], spec).to(plan.device) for spec in inputs)
    if is_on_gpu and short is not None:
        example = tuple(tensor.to(short) if tensor.dtype is torch.float32 else tensor for tensor in example)
    # How many rows there may be is the program's own business; that any number may come is not.
    free = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO
    shapes = tuple({axis: free[axis > 0] for axis, length in enumerate(spec.shape) if length == -1} for spec in inputs)
    with torch.no_grad():
        exported = torch.export.export(Flat(), example, dynamic_shapes={"inputs": shapes})
        torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - the documented way
            exported, package_path=str(request.target), inductor_configs=_options(plan)
        )


def _options(plan: Plan) -> dict[str, Any]:
    if plan.device != CPU:
        return _ON_GPU
    return _ON_CPU | _IN_BYTES if plan.precision is Precision.INT8 else _ON_CPU


def _quantized(request: CompileRequest, program: Any, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Any:
    """The program in INT8, within the tolerances on the calibration rows.  Raises CannotQuantize, InvalidModel."""
    from headrace_server.inference.backends.torch_export import to_numpy, to_torch
    from headrace_server.inference.backends.torch_quantizing import quantize

    assert request.rows is not None
    rows = read_rows(request.rows, request.signature).inputs
    spared = _narrowed(request.tolerances)

    def named(values: Sequence[Any]) -> dict[str, Array]:
        return {spec.name: to_numpy(value, spec.data_type) for spec, value in zip(outputs, values, strict=True)}

    def judge(wanted: Sequence[Any], found: Sequence[Any]) -> str:
        return why_intolerable(measure_difference(named(wanted), named(found), request.signature), None, spared)

    flat = [to_torch(rows[spec.name], spec.data_type) for spec in inputs]
    return quantize(program, flat, judge, request.search_seconds)


def _narrowed(tolerances: Tolerances) -> Tolerances:
    """Three quarters of them: compiled code adds in another order, which now and then rounds to the next byte."""
    return tolerances.model_copy(
        update={
            "max_relative_error": tolerances.max_relative_error * SPARED,
            "min_cosine": 1 - (1 - tolerances.min_cosine) * SPARED,
        }
    )


def _example(shape: tuple[int, ...], spec: TensorSpec) -> Any:
    import numpy as np

    from headrace_server.inference.backends.torch_export import to_torch

    return to_torch(np.zeros(shape, spec.data_type.dtype), spec.data_type)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
