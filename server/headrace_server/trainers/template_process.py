"""The process that makes a template: builds the network of a job with fresh weights, and exports the program around it.

    python -m headrace_server.trainers.template_process ORDER.json

It reads the job's data, because what a program takes and how it prepares it (columns, classes, means) is learned from
there; it trains nothing, reads no checkpoint, and talks to nobody: its result are files.  Before it calls a template
good it puts other weights into it, and compares what comes out with the network under the same weights.

Exit codes: 0 done, 2 the order cannot be read, 3 there is no template and `failure.json` says why.
"""

import copy
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from headrace_server.errors import HeadraceError, InvalidSpec, Violation
from headrace_server.models.onnx_weights import LARGEST_PROGRAM_BYTES, put_weights
from headrace_server.models.version import Parity
from headrace_server.niceness import be_nice
from headrace_server.trainers.failures import TrainingFailure
from headrace_server.trainers.process import FAILED, FINISHED, UNREADABLE
from headrace_server.trainers.template import FAILURE, PROGRAM, TEMPLATE, Template, TemplateFailure, TemplateOrder

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn
    from torch.export import ExportedProgram

    from headrace_server.trainers.task import BuildTask, Program, Task

NICENESS = 10
"""Trainings and predictions go first."""


def main(arguments: Sequence[str]) -> int:
    """Make the template that the order in the file named by the only argument asks for."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m headrace_server.trainers.template_process ORDER.json\n")
        return UNREADABLE
    try:
        order = TemplateOrder.model_validate_json(Path(arguments[0]).read_bytes())
    except (OSError, ValidationError) as error:
        sys.stderr.write(f"{arguments[0]}: {error}\n")
        return UNREADABLE
    be_nice(os.getpid(), NICENESS)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        make_template(order)
    except Exception as error:  # noqa: BLE001 - the edge of the process: the server must hear of whatever it is
        if not isinstance(error, HeadraceError):
            traceback.print_exc()
        failure = TemplateFailure(error=type(error).__name__, message=str(error)[:8192])
        (order.folder / FAILURE).write_text(failure.model_dump_json(), encoding="utf-8")
        return FAILED
    return FINISHED


def make_template(order: TemplateOrder) -> None:
    """Write the template that is asked for into its folder.

    Raises InvalidSpec or InvalidDataset when there is no such family or the data cannot be read, ExportDiffers when the
    program does not follow the weights that are put into it, and TrainingFailure when it cannot be exported at all.
    """
    from headrace_server.trainers.randomness import Use, derive_seed

    with tempfile.TemporaryDirectory(dir=order.folder) as scratch:
        task = _build_task(order, Path(scratch))
        write_template(task, derive_seed(order.recipe.seed, Use.NETWORK), order.folder)


def write_template(task: "Task", seed: int, folder: Path) -> None:
    """Write the template of a task whose network begins with this seed.  Raises ExportDiffers, TrainingFailure."""
    import torch

    torch.manual_seed(seed)
    network = task.make_network().eval()
    num_bytes = sum(tensor.nbytes for tensor in network.state_dict().values())
    if num_bytes > LARGEST_PROGRAM_BYTES:
        raise TrainingFailure(f"{num_bytes:,} bytes of weights do not fit an ONNX file")
    program = task.program(network)
    weights = _write_program(program, network, folder / PROGRAM)
    parity = _verify(task, network, weights, folder / PROGRAM)
    template = Template(signature=program.signature, weights=weights, parity=parity)
    (folder / TEMPLATE).write_text(template.model_dump_json(indent=1), encoding="utf-8")


def _build_task(order: TemplateOrder, scratch: Path) -> "Task":
    from headrace_server.trainers.catalogue import Families
    from headrace_server.trainers.memory import SHARE_FOR_ROWS, free_bytes
    from headrace_server.trainers.task import Material

    family = Families().get(order.trainer)
    if family is None:
        raise InvalidSpec([Violation("trainer", f"there is no trainer {order.trainer!r} here")])
    material = Material(
        path=order.dataset_path,
        format=order.dataset_format,
        holdout_fraction=order.recipe.evaluation.holdout_fraction,
        seed=order.recipe.seed,
        memory_bytes=int(free_bytes() * SHARE_FOR_ROWS),
        scratch=scratch,
        warn=_already_told,
    )
    module, _, function = family.code.partition(":")
    build: BuildTask = getattr(importlib.import_module(module), function)
    return build(family.parameters.model_validate(order.parameters), material)


def _already_told(code: str, message: str) -> None:
    """The training itself has warned of what is wrong with the data."""


def _write_program(program: "Program", network: "nn.Module", path: Path) -> dict[str, str]:
    """Export a program as it is; returns which initializer stands for which tensor of the network.

    Nothing is computed in advance: weights that were folded into each other could not be replaced any more.
    """
    import torch

    from headrace_server.trainers.export import quiet, rename, trace

    with quiet():
        exported = trace(program)
        converted = torch.onnx.export(exported, verbose=False, external_data=False, optimize=False)
    if converted is None:
        raise TrainingFailure("torch could not write the program as ONNX")
    graph = converted.model.graph
    sources = _sources(exported, network)
    stand_ins = [(value, sources[name]) for name, value in graph.initializers.items() if name in sources]
    rename(graph, program.signature)
    converted.save(path, external_data=False)
    return {str(value.name): source for value, source in stand_ins}


def _sources(exported: "ExportedProgram", network: "nn.Module") -> dict[str, str]:
    """The tensor of the network behind each tensor of the exported program that is one: those that share memory."""
    places = {_place(tensor): name for name, tensor in network.state_dict().items() if tensor.numel()}
    return {name: places[_place(tensor)] for name, tensor in exported.state_dict.items() if _place(tensor) in places}


def _place(tensor: "Tensor") -> tuple[int, tuple[int, ...], object]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype


def _verify(task: "Task", network: "nn.Module", weights: Mapping[str, str], path: Path) -> Parity:
    """Compare the program with the network, both with weights that the program was not exported with."""
    import torch
    from safetensors.torch import save_file

    from headrace_server.trainers.export import compare, onnx_run

    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(1)
    state = {name: _shift(tensor, generator) for name, tensor in other.state_dict().items()}
    other.load_state_dict(state)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        tensors, shifted = Path(scratch) / "weights.safetensors", Path(scratch) / PROGRAM
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tensors)
        put_weights(path, weights, tensors, shifted)
        return compare(PROGRAM, task.program(other.eval()), onnx_run(shifted))


def _shift(tensor: "Tensor", generator: "Generator") -> "Tensor":
    """Move every number a little, and none across zero: variances stay variances."""
    import torch

    if not tensor.is_floating_point():
        return tensor
    factors = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype)
    return tensor * (1 + factors / 4) + torch.where(tensor >= 0, factors, -factors) / 64


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stderr.flush()
    # The files are written.  Threads of libraries that a tidy end would have to wait for have been seen to abort it.
    os._exit(exit_code)
