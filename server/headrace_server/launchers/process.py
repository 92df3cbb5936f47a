"""Agents as processes on this machine, which live on when the server goes.

Knows nothing of what an agent does.  An agent is started by exec, never forked from the running server, in a session of
its own, with a clean environment and no open file of the server's.  Its folder holds `agent.pid` (who it is) and
`agent.log` (what it wrote, which the agent itself keeps short).
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import structlog

from headrace_server.launchers.launcher import CannotLaunch, Formation, Launcher
from headrace_server.launchers.processes import (
    AGENT_PID_FILE,
    MARK,
    POLL_SECONDS,
    descendants,
    find_marked,
    find_session,
    is_alive,
    kill_until_gone,
    name_of_signal,
    recall,
    record,
)
from headrace_server.launchers.warm_pool import WAIT, WarmPool, Warmth

AGENT_COMMAND = (sys.executable, "-P", "-m", "headrace_server.worker")
TRAINER_PID_FILE = "trainer.pid"
AGENT_LOG_FILE = "agent.log"

_PASSED_ON = frozenset({"PATH", "HOME", "LANG", "LANGUAGE", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ"})
_PASSED_ON_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "OPENBLAS_")

log = structlog.get_logger()


class _AgentProcess(subprocess.Popen[bytes]):
    """A child that may outlive us, which is no leak."""

    def __del__(self) -> None:
        """Say nothing: `Popen` would warn that the process still runs, which is the point of it."""


class ProcessLauncher(Launcher):
    """See the module.  `environment` is what the server runs with; only harmless parts of it are passed on."""

    def __init__(
        self,
        command: Sequence[str] = AGENT_COMMAND,
        environment: Mapping[str, str] | None = None,
        warmth: Warmth | None = None,
    ) -> None:
        """`warmth` says how many agents are started ahead of their jobs; None: none are."""
        self._command = tuple(command)
        self._environment = clean_environment(os.environ if environment is None else environment)
        self._children: dict[int, _AgentProcess] = {}  # by the descriptor that tells of their end
        self._launched: dict[
            tuple[str, int], _AgentProcess
        ] = {}  # by job and attempt, until `kill` has made sure that nothing is left
        self._pool = None if warmth is None else WarmPool(warmth, self._spawn_waiting, self._watch)

    def form(self, job: str, attempt: int, num_ranks: int) -> Formation:
        """All ranks are on this machine, where they find each other by themselves."""
        return Formation()

    async def launch(self, job: str, attempt: int, folder: Path) -> None:
        """Start an agent.  A call that is cancelled leaves none behind that `kill` would not find."""
        if self._pool is not None and (waiting := await self._pool.take(folder)) is not None:
            self._launched[job, attempt] = waiting
            log.info("launcher.agent_taken", job=job, attempt=attempt, pid=waiting.pid)
            return
        spawning = asyncio.get_running_loop().run_in_executor(None, self._spawn, folder)
        try:
            process = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            self._watch(await spawning)
            raise
        except OSError as error:
            raise CannotLaunch(f"the agent of {job} cannot be started: {error}") from error
        self._watch(process)
        self._launched[job, attempt] = process
        log.info("launcher.agent_started", job=job, attempt=attempt, pid=process.pid)

    async def ending(self, job: str, attempt: int, folder: Path) -> str | None:
        """Ask the process itself when it is a child of this server, else look for the one that was recorded."""
        if (process := self._launched.get((job, attempt))) is not None:
            return None if process.poll() is None else _describe(process.returncode)
        return "is not there any more" if await asyncio.to_thread(_is_gone, folder) else None

    async def wait(self, job: str, attempt: int, folder: Path, seconds: float) -> bool:
        """Wait for the end of the agent alone."""
        return await asyncio.to_thread(_wait, folder, seconds)

    async def kill(self, job: str, attempt: int, folder: Path, trainer_pid: int) -> int:
        """Kill the agent, its trainer and all that either has started, wherever they have moved to."""
        num_killed = await asyncio.to_thread(_kill, folder, trainer_pid)
        self._launched.pop((job, attempt), None)
        if num_killed:
            log.info("launcher.killed", job=job, attempt=attempt, processes=num_killed)
        return num_killed

    async def close(self) -> None:
        """Let go of the agents, which live on, except those that have no job."""
        if self._pool is not None:
            await self._pool.close()
        for descriptor in list(self._children):
            self._unwatch(descriptor)

    def _spawn(self, folder: Path) -> _AgentProcess:
        folder = folder.resolve()
        with (folder / AGENT_LOG_FILE).open("ab") as output:
            process = _AgentProcess(
                [*self._command, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env={**self._environment, MARK: str(folder)},
                start_new_session=True,
                close_fds=True,
            )
        try:
            record(folder / AGENT_PID_FILE, process.pid)
        except OSError:
            # Without its record only the mark finds it, which is one thread too few to hang a process on.
            process.kill()
            process.wait()
            raise
        return process

    def _spawn_waiting(self, slot: Path) -> _AgentProcess:
        slot.mkdir(parents=True, mode=0o700)
        with (slot / AGENT_LOG_FILE).open("ab") as output:
            return _AgentProcess(
                [*self._command, WAIT, str(slot)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                bufsize=0,
                cwd=slot,
                env={**self._environment, MARK: str(slot.resolve())},
                start_new_session=True,
                close_fds=True,
            )

    def _watch(self, process: _AgentProcess) -> None:
        """Take note of the process's end as soon as it comes, so that no zombie stays, without a thread that waits."""
        descriptor = os.pidfd_open(process.pid)
        self._children[descriptor] = process
        asyncio.get_running_loop().add_reader(descriptor, self._reap, descriptor)

    def _reap(self, descriptor: int) -> None:
        process = self._children[descriptor]
        if process.poll() is not None:
            log.info("launcher.agent_ended", pid=process.pid, exit_code=process.returncode)
            self._unwatch(descriptor)

    def _unwatch(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        del self._children[descriptor]


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What agents and trainers inherit: where programs and libraries lie, the language, and how to use devices.

    Neither the server's settings nor anybody's credentials.
    """
    kept = {
        name: value for name, value in environment.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    return {**kept, "GRPC_VERBOSITY": "ERROR", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def _describe(code: int) -> str:
    return f"exited with code {code}" if code >= 0 else f"was ended by {name_of_signal(code)}"


def _is_gone(folder: Path) -> bool:
    """Whether the agent of a folder is not running; a record that is not there yet is one that may still come."""
    folder = folder.resolve()
    agent = recall(folder / AGENT_PID_FILE)
    if agent is not None:
        return not is_alive(agent)
    return not any(is_alive(process) for process in find_marked(folder))


def _wait(folder: Path, seconds: float) -> bool:
    agent, deadline = recall(folder.resolve() / AGENT_PID_FILE), time.monotonic() + seconds
    while agent is not None and is_alive(agent):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _kill(folder: Path, trainer_pid: int) -> int:
    folder = folder.resolve()

    def find() -> set[psutil.Process]:
        agent, trainer = recall(folder / AGENT_PID_FILE), recall(folder / TRAINER_PID_FILE)
        roots = {process for process in (agent, trainer) if process is not None}
        session = find_session(trainer_pid, trainer, folder)
        return descendants(roots | session | find_marked(folder)) - {psutil.Process()}

    return kill_until_gone(find)
