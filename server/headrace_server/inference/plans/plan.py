"""One way to run a version: which runtime, in which number format, made ready how, on which device."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision


class Runtime(StrEnum):
    """What runs it; names as in the contract's `backend`."""

    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"


class Form(StrEnum):
    """What is made of the registered program before it runs."""

    PLAIN = "plain"
    """Nothing, or only what is done while it is opened."""
    DYNAMIC = "dynamic"
    """INT8 weights; the range of activations is found in each run."""
    STATIC = "static"
    """INT8 weights; the range of activations was found on the calibration rows."""
    COMPILED = "compiled"
    """A library compiled ahead of time."""


_SOURCES = {Runtime.ONNXRUNTIME: ArtifactFormat.ONNX, Runtime.TORCH: ArtifactFormat.TORCH_EXPORT}
_PREPARED = {Form.DYNAMIC: ".onnx", Form.STATIC: ".onnx", Form.COMPILED: ".pt2"}
CPU = "cpu"


class Plan(BaseModel):
    """One way to run a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Runtime
    precision: Precision
    form: Form = Form.PLAIN
    keeps_norms: bool = False
    """Whether normalisation, softmax and reductions stay in 32-bit floats."""
    device: str = CPU
    provider: str = ""
    """The execution provider of ONNX Runtime; empty for the one of the CPU."""

    @property
    def name(self) -> str:
        """Unique among the plans of a version: "onnxruntime-int8-dynamic", "torch-bf16-norms32-compiled"."""
        parts: list[str] = [self.runtime, self.precision]
        if self.keeps_norms:
            parts.append("norms32")
        if self.form is not Form.PLAIN:
            parts.append(self.form)
        if self.device != CPU:
            parts.append(self.device.replace(":", ""))
        if self.provider:
            parts.append(self.provider.removesuffix("ExecutionProvider").lower())
        return "-".join(parts)

    @property
    def source(self) -> ArtifactFormat:
        """The form of program that it starts from."""
        return _SOURCES[self.runtime]

    @property
    def prepared_file(self) -> str | None:
        """The name of the file that must be made for it; None where the registered program is enough."""
        return f"{self.name}{_PREPARED[self.form]}" if self.form in _PREPARED else None

    def is_prompt(self, registered: ArtifactFormat) -> bool:
        """Whether it is opened about as quickly as the `registered` program, which a version begins with otherwise.

        Torch takes seconds to be imported where nothing else needs it, compiled libraries and copies in shorter floats
        take seconds to be read, and a GPU has to be woken.
        """
        if self.source is not registered or self.device != CPU:
            return False
        return self.runtime is Runtime.ONNXRUNTIME or self == safe_plan(registered)


def safe_plan(source: ArtifactFormat) -> Plan:
    """The registered program as it is: what every version can be run with at once."""
    runtime = next(runtime for runtime, format_ in _SOURCES.items() if format_ is source)
    return Plan(runtime=runtime, precision=Precision.FP32)
