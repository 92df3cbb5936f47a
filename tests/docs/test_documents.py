"""What the documents say is true: links lead somewhere, commands exist, and the guide works from start to end."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.docs.snippets import DOCUMENTS, ROOT, Command, commands, links
from tests.doubles.server_process import running

GUIDE = ROOT / "docs" / "guide.md"
OPERATIONS = ROOT / "docs" / "operations.md"
TRAINING = ROOT / "docs" / "training.md"
CLIENT = ROOT / "clients" / "python" / "README.md"
BIN = Path(sys.executable).parent
PORT = "50051"  # what the documents say


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(document: Path) -> None:
    missing = [str(target.relative_to(ROOT)) for target in links(document) if not target.exists()]

    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_one_that_a_test_runs_or_the_menu_has(document: Path) -> None:
    unknown = [command.text for command in commands(document) if not _is_covered(command)]

    assert unknown == []


def _is_covered(command: Command) -> bool:
    words = shlex.split(command.text)
    if command.document in (GUIDE, OPERATIONS, TRAINING):
        return True  # every command of these is run below
    if command.document == CLIENT:
        return True  # and of this one in tests/clients/test_readme.py
    if words[0] == "make":
        return (
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, check=False).returncode
            == 0
        )
    if words[0] == ".venv/bin/pytest":
        return all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    if words[0] == ".venv/bin/python":
        return (ROOT / words[1]).exists()
    if words[:2] == ["git", "clone"] or words[0] == "cd":
        return True
    return any(command.text == known.text for guide in (GUIDE, OPERATIONS) for known in commands(guide))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_guide_works_from_start_to_end(tmp_path: Path) -> None:
    _write_what_the_guide_starts_from(tmp_path)

    async with running(tmp_path / "data") as (server, _callers):
        port = (await server.logged("house.open"))["port"]
        environment = {"HEADRACE_SERVER": f"127.0.0.1:{port}"}
        for command in commands(GUIDE):
            if not command.text.startswith(("headrace-server serve", "make ")):
                await _run(command.text.replace(PORT, str(port)), tmp_path, environment)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_commands_for_operators_work(tmp_path: Path) -> None:
    _write_what_the_guide_starts_from(tmp_path)

    for command in commands(OPERATIONS):
        words = shlex.split(command.text)
        if words[:2] == ["headrace-server", "serve"]:
            arguments = [word.replace("=model.onnx", f"={tmp_path}/model.onnx") for word in words[2:]]
            async with running(tmp_path / "data", *arguments) as (server, _callers):
                server.process.terminate()
                assert await server.ended() == 0, server.report()
        else:
            await _run(command.text, tmp_path, {})


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_trainings_are_followed_by_trackers_and_compared_as_the_document_says(tmp_path: Path) -> None:
    _write_what_the_guide_starts_from(tmp_path)
    serve, *others = sorted(commands(TRAINING), key=lambda command: not command.text.startswith("headrace-server"))
    # The chapter on comparing stands before the one whose jobs it compares.
    others.sort(key=lambda command: command.text.startswith(("headrace jobs", "headrace models")))
    arguments = [word.replace("runs", f"{tmp_path}/runs") for word in shlex.split(serve.text)[2:]]

    async with running(tmp_path / "data", *arguments) as (server, _callers):
        port = (await server.logged("house.open"))["port"]
        for command in others:
            await _run(command.text, tmp_path, {"HEADRACE_SERVER": f"127.0.0.1:{port}"})
        server.process.terminate()
        assert await server.ended() == 0, server.report()

    runs = [run.name.partition("-")[0] for run in (tmp_path / "runs").iterdir()]
    assert sorted(runs) == ["narrow", "wide"]


async def _run(text: str, folder: Path, environment: dict[str, str]) -> None:
    own = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), "COLUMNS": "100", **environment}
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", text), cwd=folder, env={**os.environ, **own},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(280):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, f"$ {text}\n{output.decode()}"


def _write_what_the_guide_starts_from(folder: Path) -> None:
    """The files that the guide calls the reader's own."""
    rng = np.random.default_rng(7)
    rows = ["width,height,colour,species"]
    for index in range(240):
        species = "oak" if index % 2 else "elm"
        width = rng.normal(3.0 if species == "oak" else 1.0, 0.4)
        rows.append(f"{width:.3f},{rng.normal(2, 0.5):.3f},{'green' if index % 3 else 'brown'},{species}")
    (folder / "leaves.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.copy(_linear_model(folder), folder / "model.onnx")


def _linear_model(folder: Path) -> Path:
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor("weight", TensorProto.FLOAT, [3, 2], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0])],
    )
    path = folder / "linear.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def test_the_readme_names_only_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paths: Iterator[str] = (match for match in re.findall(r"`((?:tests|docs|examples|protos|deploy)/[\w./-]+)`", text))

    missing = [path for path in paths if not (ROOT / path).exists()]

    assert missing == []
