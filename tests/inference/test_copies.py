"""Optimised copies, from which a version that comes back is opened."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from headrace_server import _native
from headrace_server.inference import copies as module
from headrace_server.inference.copies import Copies
from headrace_server.inference.copying import PROGRAM_FILE, CannotCopy, copy
from headrace_server.inference.errands import Errands
from headrace_server.inference.programs import Program
from headrace_server.kernels import onnx_programs
from headrace_server.names import ModelName
from headrace_server.tensors import Array
from tests.doubles.onnx_models import identity, masked_mean, mlp
from tests.inference.conftest import MakeEngine, Publish

M = ModelName("m")
LARGE = (64, 2048, 1024, 10)
"""The layers of a network of 8.6 MB."""
PLENTY = 1 << 40
ROWS = {"x": np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)}

MakeCopies = Callable[..., Copies]


@pytest.fixture
async def make_copies(tmp_path: Path) -> AsyncIterator[MakeCopies]:
    errands = Errands()

    def make(most_bytes: int = PLENTY, free_bytes: int = PLENTY, script: str = "") -> Copies:
        command = (sys.executable, "-c", script) if script else module.COPY_COMMAND
        return Copies(tmp_path / "copies", most_bytes, errands, lambda: free_bytes, command)

    yield make
    await errands.close()


def program(folder: Path, name: str = "large", sizes: tuple[int, ...] = LARGE) -> Program:
    path = folder / f"{name}.onnx"
    onnx.save(mlp(sizes), path)
    return Program(path, f"sha256:{name}", None)


async def made(copies: Copies, *programs: Program) -> None:
    """Have copies made, and wait until nothing is under way."""
    for each in programs:
        copies.make(each)
    await copies._errands.finish()


OPENED = "import pathlib, sys; (pathlib.Path(sys.argv[2]) / 'program.onnx').write_bytes(b'x' * 100)"


async def test_a_copy_is_found_from_then_on_and_its_weights_lie_beside_it(
    make_copies: MakeCopies, tmp_path: Path
) -> None:
    copies, large = make_copies(), program(tmp_path)

    before = copies.find(large.digest)
    await made(copies, large)
    found = copies.find(large.digest)

    assert before is None
    assert found is not None
    sizes = {file.name: file.stat().st_size for file in found.path.parent.iterdir()}
    assert sizes[PROGRAM_FILE] < 1 << 16
    assert sum(sizes.values()) >= 8 << 20


async def test_small_programs_and_none_where_there_is_no_disk_or_no_memory_for_it_are_copied(
    make_copies: MakeCopies, tmp_path: Path
) -> None:
    small, large = program(tmp_path, "small", (64, 32, 4)), program(tmp_path)
    plenty, no_disk, little_disk, no_memory = (
        make_copies(), make_copies(0), make_copies(1 << 20), make_copies(PLENTY, 1 << 20),
    )  # fmt: skip

    await made(plenty, small)
    for each in (no_disk, little_disk, no_memory):
        await made(each, large)

    assert plenty.find(small.digest) is None
    assert [each.find(large.digest) for each in (no_disk, little_disk, no_memory)] == [None] * 3


async def test_the_least_recently_used_copy_goes_when_they_take_too_much(
    make_copies: MakeCopies, tmp_path: Path
) -> None:
    copies = make_copies(9 << 20, script=OPENED.replace("100", str(4 << 20)))
    programs = [program(tmp_path, name) for name in ("one", "two", "three")]

    await made(copies, *programs[:2])
    assert copies.find(programs[0].digest) is not None
    await made(copies, programs[2])

    assert [copies.find(each.digest) is not None for each in programs] == [True, False, True]
    assert len([*(tmp_path / "copies").iterdir()]) == 2


@pytest.mark.parametrize("script", ["import sys; sys.exit('no')", "import os, signal; os.kill(os.getpid(), 9)"])
async def test_a_program_that_cannot_be_copied_is_not_tried_again_and_leaves_nothing_behind(
    make_copies: MakeCopies, tmp_path: Path, script: str
) -> None:
    tries = tmp_path / "tries"
    copies, large = make_copies(script=f"open({str(tries)!r}, 'a').write('x'); {script}"), program(tmp_path)

    await made(copies, large)
    await made(copies, large)

    assert copies.find(large.digest) is None
    assert tries.read_text() == "x"
    assert not [*(tmp_path / "copies").iterdir()]


async def test_copying_that_hangs_is_ended(
    make_copies: MakeCopies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.1)
    copies, large = make_copies(script="import time; time.sleep(3600)"), program(tmp_path)

    async with asyncio.timeout(60):
        await made(copies, large)

    assert copies.find(large.digest) is None


async def test_a_copy_that_could_not_be_opened_is_not_offered_again(make_copies: MakeCopies, tmp_path: Path) -> None:
    copies, large = make_copies(script=OPENED), program(tmp_path)
    await made(copies, large)
    found = copies.find(large.digest)
    assert found is not None

    found.lost()
    after = copies.find(large.digest)
    await made(copies, large)

    assert (after, copies.find(large.digest)) == (None, None)
    assert not [*(tmp_path / "copies").iterdir()]


async def test_a_program_that_leaves_while_it_is_copied_is_copied_when_it_comes_back(
    make_copies: MakeCopies, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    leave = f"os.path.exists({str(back)!r}) or (os.remove(sys.argv[1]), sys.exit('gone'))"
    script = f"import os, sys; {leave}; {OPENED}"
    copies, large = make_copies(script=script), program(tmp_path)
    await made(copies, large)
    before = copies.find(large.digest)

    program(tmp_path)
    back.touch()
    await made(copies, large)

    assert before is None
    assert copies.find(large.digest) is not None


@pytest.mark.parametrize("make", [lambda: mlp((16, 32, 4)), masked_mean])
def test_a_copy_answers_bit_for_bit_as_the_program_does(tmp_path: Path, make: Callable[[], onnx.ModelProto]) -> None:
    onnx.save(make(), tmp_path / "given.onnx")
    folder = tmp_path / "copy"
    folder.mkdir()

    copy(tmp_path / "given.onnx", folder)  # compares both itself

    assert (folder / PROGRAM_FILE).exists()


def test_a_program_that_cannot_be_asked_anything_is_not_copied(tmp_path: Path) -> None:
    onnx.save(identity(onnx.TensorProto.STRING, ("batch",)), tmp_path / "given.onnx")

    with pytest.raises((CannotCopy, TypeError)):
        copy(tmp_path / "given.onnx", tmp_path)


class Opened:
    """What was opened, and whether it was to be optimised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, bool]] = []
        self._open = onnx_programs.open_program
        monkeypatch.setattr(onnx_programs, "open_program", self)

    def __call__(self, path: Path, *, optimises: bool = True, **rest: Any) -> _native.OnnxProgram:
        self.calls.append((path.name, optimises))
        return self._open(path, optimises=optimises, **rest)


@pytest.mark.skipif(not onnx_programs.can_open(), reason="there is no library of ONNX Runtime")
@pytest.mark.parametrize("harm", ["", "damage", "loss"])
async def test_a_version_that_comes_back_is_opened_from_its_copy_or_as_it_was_registered(
    make_engine: MakeEngine, publish: Publish, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    version = await publish(mlp(LARGE))  # who registers looks at it, too
    opened = Opened(monkeypatch)
    engine = make_engine()
    before: Array = (await engine.predict(M, ROWS)).outputs["y"]
    await engine._errands.finish()
    found = engine._loader._copy_of(Program(Path(), version.artifacts[0].digest, None))
    assert found is not None
    if harm == "damage":
        found.path.write_bytes(b"no program")
    elif harm == "loss":
        found.path.unlink()

    for _ in range(2):
        await engine.unload(M)
        after = (await engine.predict(M, ROWS)).outputs["y"]
        assert np.array_equal(after, before)

    copied, plain = (PROGRAM_FILE, False), opened.calls[0]
    assert plain[1]
    assert opened.calls[1:] == ([copied, plain, plain] if harm else [copied, copied])
