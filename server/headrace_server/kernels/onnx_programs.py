"""Opens ONNX programs on the CPU with the library of ONNX Runtime, so that they run without Python.

The library is the one that the runtime's Python package brings along beside its own module, which holds everything a
second time: whoever opens programs here does not import the package, and its memory is saved.  Where the library is not
to be had, `can_open` says so, and the package has to do.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import structlog

from headrace_server import _native

log = structlog.get_logger()


@cache
def library() -> tuple[Path, str] | None:
    """Where the library is, and its version; None when it is not to be had, which is logged once."""
    path = _find()
    if path is None:
        log.warning("onnxruntime.no_library", effect="ONNX programs run through Python")
        return None
    try:
        return path, _native.onnxruntime_version(str(path))
    except (RuntimeError, _native.OnnxRuntimeError) as error:
        log.warning("onnxruntime.no_library", effect="ONNX programs run through Python", problem=str(error))
        return None


def can_open() -> bool:
    """Whether the library is there."""
    return library() is not None


def open_program(
    path: Path,
    *,
    num_threads: int,
    input_names: Sequence[str],
    output_names: Sequence[str],
    optimises: bool = True,
) -> _native.OnnxProgram:
    """Read a program; blocks, for long, without the GIL.  Inputs and outputs go in and out in the order of these names.

    Only where `can_open`.  Raises `_native.OnnxRuntimeError`.
    """
    found = library()
    assert found is not None
    return _native.OnnxProgram(
        str(found[0]),
        str(path),
        num_threads=num_threads,
        optimises=optimises,
        input_names=list(input_names),
        output_names=list(output_names),
    )


def _find() -> Path | None:
    package = importlib.util.find_spec("onnxruntime")  # does not import it
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0]) / "capi"
    return next(iter(sorted(folder.glob("libonnxruntime.so*"))), None)
