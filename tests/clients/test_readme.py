"""The programs and the commands in the client's README run."""

import asyncio
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.doubles.scripted_server import ScriptedServer

README = Path(__file__).resolve().parents[2] / "clients/python/README.md"
FENCE = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(README.read_text(encoding="utf-8"))
PROGRAMS = [body for language, body in BLOCKS if language == "python"]
COMMANDS = [line for language, body in BLOCKS if language == "sh" for line in body.splitlines()]


@pytest.fixture
def server() -> ScriptedServer:
    """A server that has the model and the job which the README speaks of."""
    server = ScriptedServer()
    server.inference.inputs[0].shape[:] = [-1, 8, 8]
    server.models.files["models/digits"] = [b"onnx"]
    server.training.name = "trainingJobs/nightly"
    return server


async def run(*command: str, folder: Path, server: ScriptedServer) -> str:
    environment = {
        **os.environ,
        "HEADRACE_SERVER": server.target,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complaint = await asyncio.wait_for(process.communicate(), 240)
    assert (process.returncode, complaint.decode()) == (0, "")
    return said.decode()


def test_there_are_programs_and_commands() -> None:
    assert (len(PROGRAMS), len(COMMANDS)) == (2, 7)


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_of_the_readme_runs(program: str, server: ScriptedServer, tmp_path: Path) -> None:
    server.training.jobs_listed = ["trainingJobs/nightly"]

    async with server.listen():
        text = program.replace("127.0.0.1:50051", server.target)
        assert await run(sys.executable, "-c", text, folder=tmp_path, server=server)


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_of_the_readme_runs(command: str, server: ScriptedServer, tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", images=np.zeros((4, 8, 8)), labels=np.arange(4))
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8)))

    async with server.listen():
        assert await run("bash", "-c", command, folder=tmp_path, server=server)
