"""Which plans are worth measuring: a pure function of what a version has, what the machine has, and what is wanted."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision

CUDA = "cuda:0"
_SHORT_FLOATS = (Precision.BF16, Precision.FP16)
# What ONNX Runtime may offer beside the CPU.  A session says whether it really got it.
_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


@dataclass(frozen=True, slots=True)
class Means:
    """What the machine has to run and make plans with."""

    can_compile: bool
    """Whether there is a C++ compiler.  What else it takes to compile for a GPU, the compiling process asks for."""
    has_gpu: bool = False
    providers: tuple[str, ...] = ()
    """What the installed ONNX Runtime was built with."""


def candidates(formats: Collection[ArtifactFormat], wanted: Precision, means: Means) -> list[Plan]:
    """The plans to measure: the registered programs, what is quick to make of them, and what is compiled at last.

    FP32 means the registered program and nothing else; AUTO means everything.
    """
    found = [plan for plan in _all(formats, means) if _is_wanted(plan, wanted)]
    return sorted(found, key=lambda plan: (plan.form is Form.COMPILED, plan.precision is not Precision.FP32))


def _is_wanted(plan: Plan, wanted: Precision) -> bool:
    is_plain = plan.precision is Precision.FP32 and plan.form is Form.PLAIN
    if wanted is Precision.FP32:
        return is_plain
    return wanted is Precision.AUTO or plan.precision is wanted or is_plain


def _all(formats: Collection[ArtifactFormat], means: Means) -> Iterator[Plan]:
    if ArtifactFormat.ONNX in formats:
        yield Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
        yield Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.INT8, form=Form.DYNAMIC)
        yield Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.INT8, form=Form.STATIC)
        if means.has_gpu:
            for provider in _PROVIDERS:
                if provider in means.providers:
                    yield Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32, device=CUDA, provider=provider)
    if ArtifactFormat.TORCH_EXPORT in formats:
        yield from _torch("cpu", means.can_compile)
        if means.has_gpu:
            yield from _torch(CUDA, means.can_compile)


def _torch(device: str, can_compile: bool) -> Iterator[Plan]:
    for form in (Form.PLAIN, Form.COMPILED) if can_compile else (Form.PLAIN,):
        yield Plan(runtime=Runtime.TORCH, precision=Precision.FP32, form=form, device=device)
        if device == "cpu" and form is Form.COMPILED:
            yield Plan(runtime=Runtime.TORCH, precision=Precision.INT8, form=form)
        for precision in _SHORT_FLOATS:
            if device == "cpu" and precision is Precision.FP16 and form is Form.COMPILED:
                continue  # no processor that we know multiplies FP16 faster than FP32: compiling it is time for nothing
            for keeps_norms in (False, True):
                yield Plan(
                    runtime=Runtime.TORCH, precision=precision, form=form, keeps_norms=keeps_norms, device=device
                )
