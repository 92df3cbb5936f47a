"""Writes a trained network as programs that anybody can run, and compares each with the network itself.

    model.onnx            for ONNX Runtime; left out, with a warning, when it would be larger than ONNX files can be
    program.pt2           for torch.export.load
    weights.safetensors   the weights alone
    calibration.safetensors   held-out rows and the network's answers, to judge ways of running it with
    export.json           the ExportManifest

Both programs are one and the same graph with all preprocessing inside.  They take any number of rows.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from headrace_server.models.calibration import (
    CALIBRATION_FILE,
    CalibrationRows,
    bounded,
    can_be_stored,
    write_rows,
)
from headrace_server.models.version import ArtifactFormat, Lineage, Parity
from headrace_server.tensors import Array, Signature
from headrace_server.trainers.evaluations import Best
from headrace_server.trainers.failures import ExportDiffers, TrainingFailure
from headrace_server.trainers.job_file import ExportedArtifact, ExportManifest
from headrace_server.trainers.task import Program

ONNX, PT2, WEIGHTS, MANIFEST = "model.onnx", "program.pt2", "weights.safetensors", "export.json"
TOLERANCE = 1e-4
"""How far an element of a floating-point output may be off, relative to the largest one (at least 1)."""
_MAX_ONNX_BYTES = 2_000_000_000  # the limit of protobuf is 2 GiB
_MAX_ROWS = 65_536

Run = Callable[[Sequence[Tensor]], Sequence[Array]]


class Export:
    """The export of one training, below `folder`, which is made."""

    def __init__(self, folder: Path, program: Program, warn: Callable[[str, str], None]) -> None:
        self._folder, self._program, self._warn = folder, program, warn
        self._artifacts: list[ExportedArtifact] = []
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, network: nn.Module) -> None:
        """Write all artifacts.  Raises OSError, or TrainingFailure when torch cannot export the program."""
        with quiet():
            exported = trace(self._program)
            torch.export.save(exported, self._folder / PT2)
            self._note(PT2, ArtifactFormat.TORCH_EXPORT)
            num_bytes = sum(tensor.nbytes for tensor in self._program.module.state_dict().values())
            if num_bytes <= _MAX_ONNX_BYTES:
                _write_onnx(exported, self._program.signature, self._folder / ONNX)
                self._note(ONNX, ArtifactFormat.ONNX)
            else:
                self._warn(
                    "ONNX_TOO_LARGE", f"{num_bytes:,} bytes of weights do not fit an ONNX file: there is only {PT2}"
                )
        weights = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
        save_file(weights, self._folder / WEIGHTS)
        self._note(WEIGHTS, ArtifactFormat.SAFETENSORS)
        self._write_calibration()

    def _write_calibration(self) -> None:
        """Store held-out rows with what the network answers to them: whoever serves it judges its plans by them."""
        signature = self._program.signature
        if not can_be_stored(signature):
            return
        with torch.no_grad():
            answers = self._program.module(*self._program.inputs)
        inputs = {
            spec.name: tensor.numpy() for spec, tensor in zip(signature.inputs, self._program.inputs, strict=True)
        }
        outputs = {spec.name: tensor.numpy() for spec, tensor in zip(signature.outputs, answers, strict=True)}
        targets = {}
        if self._program.targets is not None:
            targets[signature.outputs[0].name] = self._program.targets.numpy()
        write_rows(bounded(CalibrationRows(inputs, outputs, targets), signature), self._folder / CALIBRATION_FILE)
        self._note(CALIBRATION_FILE, ArtifactFormat.CALIBRATION)

    def verify(self) -> dict[str, Parity]:
        """Run every program that was written on held-out rows.  Raises ExportDiffers.  Returns parity by file name."""
        runs: dict[ArtifactFormat, Callable[[Path], Run]] = {
            ArtifactFormat.ONNX: onnx_run,
            ArtifactFormat.TORCH_EXPORT: _torch_run,
        }
        return {
            artifact.path: compare(artifact.path, self._program, runs[artifact.format](self._folder / artifact.path))
            for artifact in self._artifacts
            if artifact.format in runs
        }

    def describe(self, best: Best, parity: dict[str, Parity], code_version: str, environment: dict[str, str]) -> Path:
        """Write the manifest, which makes the folder complete, and return the folder."""
        manifest = ExportManifest(
            signature=self._program.signature,
            artifacts=tuple(sorted(self._artifacts, key=lambda artifact: artifact.path)),
            metrics=dict(best.metrics),
            lineage=Lineage(step=best.step, code_version=code_version, environment=environment, parity=parity),
        )
        (self._folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        return self._folder

    def _note(self, path: str, artifact_format: ArtifactFormat) -> None:
        self._artifacts.append(ExportedArtifact(path=path, format=artifact_format))


def compare(path: str, program: Program, run: Run) -> Parity:
    """Compare a program with the network: all rows at once, and the first alone.

    Outputs of integers are not compared where there are others: they follow from them, and flip at ties.
    """
    largest = 0.0
    specs = program.signature.outputs
    is_compared = [spec.data_type.is_floating for spec in specs]
    is_compared = is_compared if any(is_compared) else [True] * len(specs)
    for inputs in (program.inputs, tuple(tensor[:1] for tensor in program.inputs)):
        with torch.no_grad():
            wanted = [tensor.numpy() for tensor in program.module(*inputs)]
        for spec, want, got, compares in zip(specs, wanted, run(inputs), is_compared, strict=True):
            if want.shape != got.shape or want.dtype != got.dtype:
                raise TrainingFailure(
                    f"{path} answers {spec.name!r} as {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
                )
            if compares:
                difference = float(np.abs(want.astype(np.float64) - got.astype(np.float64)).max())
                tolerance = TOLERANCE * max(1.0, float(np.abs(want).max()))
                if not difference <= tolerance:  # also when it is NaN
                    raise ExportDiffers(path, spec.name, difference, tolerance)
                largest = max(largest, difference)
    return Parity(num_rows=len(program.inputs[0]), max_abs_difference=largest)


def trace(program: Program) -> ExportedProgram:
    """The graph of the program, for any number of rows.  An example of two rows: one would be taken for a constant."""
    example = tuple(tensor[:2] if len(tensor) > 1 else torch.cat([tensor, tensor]) for tensor in program.inputs)
    batch = Dim("batch", min=1, max=_MAX_ROWS)
    whole = _Positional(program.module, len(example))
    return torch.export.export(whole, example, dynamic_shapes={"inputs": tuple({0: batch} for _ in example)})


class _Positional(nn.Module):
    """Gives any program the same shape to trace: positional inputs, whatever they are called in its `forward`."""

    def __init__(self, module: nn.Module, num_inputs: int) -> None:
        super().__init__()
        self.module = module
        self._num_inputs = num_inputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.module(*inputs[: self._num_inputs])
        return outputs


def _write_onnx(exported: ExportedProgram, signature: Signature, path: Path) -> None:
    converted = torch.onnx.export(exported, verbose=False, external_data=False)
    if converted is None:
        raise TrainingFailure("torch could not write the program as ONNX")
    rename(converted.model.graph, signature)
    converted.save(path, external_data=False)


def rename(graph: onnx_ir.Graph, signature: Signature) -> None:
    """Name inputs and outputs as the signature does, and everything between them so that no name can clash.

    Columns may be called anything, also what torch calls a value in the middle.
    """
    taken = {spec.name for spec in (*signature.inputs, *signature.outputs)}
    prefix = "_"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    values = [
        *graph.inputs,
        *graph.initializers.values(),
        *(value for node in graph.all_nodes() for value in node.outputs),
    ]
    for number, value in enumerate(values):
        value.name = f"{prefix}{number}"
    for value, spec in zip([*graph.inputs, *graph.outputs], [*signature.inputs, *signature.outputs], strict=True):
        value.name = spec.name


def onnx_run(path: Path) -> Run:
    """Open an ONNX program; what is returned runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Sequence[Array]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        answers: Sequence[Array] = session.run(None, feed)
        return answers

    return run


def _torch_run(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(inputs: Sequence[Tensor]) -> Sequence[Array]:
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(*inputs)]

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporter from writing pages about itself; what fails is raised all the same."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
