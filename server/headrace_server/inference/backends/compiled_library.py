"""A library that AOTInductor made of a program, called through its C interface.

Torch's own loader holds Python's lock for as long as a run takes: two lanes would take turns, and the event loop would
wait for both.  A call through ctypes lets go of it.  Knows nothing of signatures, plans and lanes.
"""

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

_FOLDER = "/data/aotinductor/model/"
_capsule_of = ctypes.pythonapi.PyCapsule_New
_capsule_of.restype, _capsule_of.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_address_of = ctypes.pythonapi.PyCapsule_GetPointer
_address_of.restype, _address_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class CompiledLibraryFailed(Exception):
    """The library cannot be opened here, or a run of it has failed."""


class CompiledLibrary:
    """One opened library, for so many runs at the same time.  Any thread may call it; closed once."""

    def __init__(self, package: Path, num_runners: int, device: str = "cpu") -> None:
        """`device` is where its weights go ("cuda:0"), and what it was compiled for.

        Raises CompiledLibraryFailed, OSError when it was made for another machine, BadZipFile when it is damaged.
        """
        import torch

        self._tensors = torch._C._aoti  # noqa: SLF001 - handles of tensors, as the C interface takes them
        self._container = ctypes.c_void_p()
        with tempfile.TemporaryDirectory() as folder:  # once it is mapped, its file may go
            self._library = ctypes.CDLL(str(_extract(package, Path(folder))))
            create = self._library.AOTInductorModelContainerCreateWithDevice
            create.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p)
            _check(create(ctypes.byref(self._container), num_runners, device.encode(), None), "be opened")
        count = ctypes.c_size_t()
        get_count = self._library.AOTInductorModelContainerGetNumOutputs
        get_count.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        _check(get_count(self._container, ctypes.byref(count)), "say how many outputs it has")
        self._num_outputs = count.value
        self._run = self._library.AOTInductorModelContainerRun
        self._run_alone = self._library.AOTInductorModelContainerRunSingleThreaded
        self._run.argtypes = self._run_alone.argtypes = (
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p,
            ctypes.c_void_p,
        )  # fmt: skip

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Run once: tensors of the host in, new ones out.  Raises CompiledLibraryFailed."""
        return self._call(self._run, inputs, None)

    def run_alone(self, inputs: Sequence[Any], stream: int) -> list[Any]:
        """Begin to run on a stream of the device: tensors of it in, new ones out.  Raises CompiledLibraryFailed.

        Nobody else may call it meanwhile; runs that have begun may overlap.  It leaves no events on the stream, which
        the library would ask for at the next run and which cannot be asked once they are recorded: so a graph may hold
        it, after a first run without one.
        """
        return self._call(self._run_alone, inputs, stream or None)

    def _call(self, run: Any, inputs: Sequence[Any], stream: int | None) -> list[Any]:
        handles = self._tensors.unsafe_alloc_void_ptrs_from_tensors(list(inputs))  # the library takes them over
        given = (ctypes.c_void_p * len(handles))(*(_address_of(handle, None) for handle in handles))
        made = (ctypes.c_void_p * self._num_outputs)()
        _check(run(self._container, given, len(handles), made, self._num_outputs, stream, None), "be run")
        outputs: list[Any] = self._tensors.alloc_tensors_by_stealing_from_void_ptrs(
            [_capsule_of(address, None, None) for address in made]
        )
        return outputs

    def close(self) -> None:
        """Give the weights back.  The code stays mapped: nobody knows what of it torch's threads still hold."""
        delete = self._library.AOTInductorModelContainerDelete
        delete.argtypes = (ctypes.c_void_p,)
        _check(delete(self._container), "be closed")


def _extract(package: Path, folder: Path) -> Path:
    """Bring the library, and nothing else, out of its package."""
    with ZipFile(package) as archive:
        names = [name for name in archive.namelist() if _FOLDER in name]
        libraries = [name for name in names if name.endswith(".so")]
        if len(libraries) != 1:
            raise CompiledLibraryFailed(f"the package has {len(libraries)} libraries, not one")
        if libraries[0].removesuffix(".so") + ".json" in names:
            raise CompiledLibraryFailed("it calls operators that are not in the library, which only torch's loader can")
        return Path(archive.extract(libraries[0], folder))


def _check(code: int, what: str) -> None:
    if code != 0:
        raise CompiledLibraryFailed(f"the compiled program could not {what} (error {code}; torch wrote why)")
