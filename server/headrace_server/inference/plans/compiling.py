"""Compiles a plan with AOTInductor, in a process of its own.

`python -P -m headrace_server.inference.plans.compiling REQUEST.json`.  Compiling takes from seconds to minutes and
gigabytes of memory, and nobody waits for it: so it is as nice as a process can be, and given up when its time is over.
Calls are answered meanwhile, and what was measured before it is not lost when it dies.
"""

import contextlib
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from headrace_server.inference.plans.ending import die_with_parent
from headrace_server.inference.plans.plan import Plan
from headrace_server.niceness import be_nice
from headrace_server.precision import Precision
from headrace_server.tensors import Signature

LEAST_PRIORITY = 19
LAST_WORDS_BYTES = 4000


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


def compile_apart(request: CompileRequest, seconds: float) -> None:
    """Compile in a process of its own, for so many seconds at most.  Raises CannotCompile, OSError."""
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

    from headrace_server.inference.backends.torch_export import order_of
    from headrace_server.inference.backends.torch_lowering import lower

    plan, signature = request.plan, request.signature
    program = torch.export.load(str(request.source))
    call_spec = program.call_spec
    dtypes = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
    if plan.precision in dtypes:
        inner: nn.Module = lower(program, dtypes[plan.precision], keeps_norms=plan.keeps_norms)
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

    inputs, _ = order_of(request.source, signature)
    example = tuple(_example(request.shapes[spec.name], spec) for spec in inputs)
    # How many rows there may be is the program's own business; that any number may come is not.
    free = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO
    shapes = tuple({axis: free[axis > 0] for axis, length in enumerate(spec.shape) if length == -1} for spec in inputs)
    with torch.no_grad():
        exported = torch.export.export(Flat(), example, dynamic_shapes={"inputs": shapes})
        # Threads are decided by each run, not by the compiler; weights are folded into the layout that is fastest.
        torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - the documented way
            exported,
            package_path=str(request.target),
            inductor_configs={"cpp.dynamic_threads": True, "freezing": True},
        )


def _example(shape: tuple[int, ...], spec: Any) -> Any:
    import numpy as np

    from headrace_server.inference.backends.torch_export import to_torch

    return to_torch(np.zeros(shape, spec.data_type.dtype), spec.data_type)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
