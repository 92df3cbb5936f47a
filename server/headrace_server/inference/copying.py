"""Makes an optimised copy of an ONNX program, in a process of its own, and proves that it answers the same.

`python -P -m headrace_server.inference.copying PROGRAM FOLDER`.  The copy is what ONNX Runtime makes of the program
before it runs it, with the weights in a file beside it, as they lie in memory.  It is for this machine and this version
of the runtime alone.  The runtime's package is imported by that process only.
"""

import os
import sys
from pathlib import Path
from typing import Any

from headrace_server.inference.plans.ending import die_with_parent
from headrace_server.niceness import be_nice

PROGRAM_FILE = "program.onnx"
WEIGHTS_FILE = "program.weights"
_LEAST_PRIORITY = 19
_LEAST_WEIGHTS_BYTES = 1024
"""Of what is put into the file of weights; smaller ones stay in the program."""
_LENGTH = 4
"""Of axes that are free, beside the first."""
_INTEGERS = (1, 0)
"""Values for whatever is no float: the first that the program takes."""


class CannotCopy(Exception):
    """The copy does not answer as the program does, or nothing is known that could be asked."""


def main(arguments: list[str]) -> int:
    """Copy the program that the first argument names into the folder that the second one does."""
    die_with_parent()
    be_nice(os.getpid(), _LEAST_PRIORITY)
    copy(Path(arguments[0]), Path(arguments[1]))
    return 0


def copy(program: Path, folder: Path) -> None:
    """Write the copy.  Raises CannotCopy, or what ONNX Runtime raises."""
    import onnxruntime

    options = _options()
    options.optimized_model_filepath = str(folder / PROGRAM_FILE)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS_FILE)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(_LEAST_WEIGHTS_BYTES)
    )
    original = _open(program, options)
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    copied = _open(folder / PROGRAM_FILE, options)
    for rows in (1, 3):
        feeds, expected = _ask(original, rows)
        answers = copied.run(None, feeds)
        if [_bits(answer) for answer in answers] != [_bits(answer) for answer in expected]:
            raise CannotCopy(f"it answers {rows} rows differently")


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _open(path: Path, options: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _ask(session: Any, rows: int) -> tuple[dict[str, Any], list[Any]]:
    """Something that the program takes, and what it answers."""
    problem: Exception | None = None
    for integer in _INTEGERS:
        feeds = {each.name: _input(each, rows, integer) for each in session.get_inputs()}
        try:
            return feeds, session.run(None, feeds)
        except Exception as error:  # noqa: BLE001 - a program may refuse anything
            problem = error
    raise CannotCopy(f"it cannot be asked anything: {problem}")


def _input(spec: Any, rows: int, integer: int) -> Any:
    import numpy as np

    name = spec.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(name, name))
    free = [axis for axis, length in enumerate(spec.shape) if not isinstance(length, int) or length < 1]
    shape = [(rows if axis == 0 else _LENGTH) if axis in free else length for axis, length in enumerate(spec.shape)]
    if dtype.kind != "f":
        return np.full(shape, integer, dtype)
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float64).reshape(shape).astype(dtype)


def _bits(answer: Any) -> tuple[Any, ...]:
    return answer.dtype, answer.shape, answer.tobytes()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
