"""Opens the session of a plan.  The same for the process that measures it and for the lanes that serve with it."""

from dataclasses import dataclass
from pathlib import Path

from headrace_server.inference.backends import onnxruntime, torch_export
from headrace_server.inference.backends.backend import Session
from headrace_server.inference.backends.halves import InHalves
from headrace_server.inference.plans.plan import CPU, Form, Plan, Runtime
from headrace_server.tensors import Signature


class NotHere(Exception):
    """The machine does not have what the plan runs on, although the runtime promised it."""


@dataclass(frozen=True, slots=True)
class PlanFiles:
    """The files of a plan on local disk."""

    source: Path
    """The registered program."""
    prepared: Path | None = None
    """What was made of it; None for a plan that needs nothing."""
    copy: onnxruntime.Copy | None = None
    """Of what ONNX Runtime runs, where there is one."""


def open_plan(plan: Plan, files: PlanFiles, signature: Signature, *, num_threads: int, num_runs: int = 1) -> Session:
    """A session with so many threads a run, which may be run by `num_runs` threads at the same time.  Blocks, for long.

    One that shares weights belongs to the thread that opens it; others have twins.

    Raises NotHere, InvalidModel, or what the runtime raises.
    """
    if plan.runtime is Runtime.ONNXRUNTIME:
        providers = [plan.provider, onnxruntime.CPU_PROVIDER] if plan.provider else [onnxruntime.CPU_PROVIDER]
        path = files.prepared or files.source
        opened = onnxruntime.open_program(
            path, signature, num_threads=num_threads, providers=providers, precision=plan.precision, copy=files.copy
        )
        if opened.provider != providers[0]:
            raise NotHere(f"ONNX Runtime was asked for {providers[0]} and runs on {opened.provider}")
        return InHalves(opened) if plan.device != CPU and signature.is_batchable else opened
    if plan.device != CPU:
        on_gpu = _open_on_gpu(plan, files, signature)
        return InHalves(on_gpu) if signature.is_batchable else on_gpu
    if plan.form is Form.COMPILED:
        assert files.prepared is not None
        return torch_export.open_compiled(
            files.prepared,
            files.source,
            signature,
            num_threads=num_threads,
            precision=plan.precision,
            num_runners=num_runs,
        )
    return torch_export.open_program(
        files.source, signature, num_threads=num_threads, precision=plan.precision, keeps_norms=plan.keeps_norms
    )


def _open_on_gpu(plan: Plan, files: PlanFiles, signature: Signature) -> Session:
    from headrace_server.inference.backends.torch_graphs import open_compiled_on_gpu, open_on_gpu

    if plan.form is Form.COMPILED:
        assert files.prepared is not None
        return open_compiled_on_gpu(
            files.prepared, files.source, signature, device=plan.device, precision=plan.precision
        )
    return open_on_gpu(
        files.source, signature, device=plan.device, precision=plan.precision, keeps_norms=plan.keeps_norms
    )
