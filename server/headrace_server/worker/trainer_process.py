"""One trainer process with its four pipes: reports up, commands down, and two for what it writes for people.

Knows how a trainer is started and spoken to; decides nothing about it.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from headrace_server.trainers.job_file import JobFile
from headrace_server.trainers.process import WAIT
from headrace_server.trainers.reports import TRAINER_REPORT, TakeCommand, TrainerCommand, TrainerReport
from headrace_server.training.events import LogSource
from headrace_server.worker.lines import LineCutter
from headrace_server.worker.output import Output

TRAINER_COMMAND = (sys.executable, "-P", "-m", "headrace_server.trainers")
JOB_FILE = "job.json"
LONGEST_REPORT_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16


class TrainerProcess:
    """A trainer that was started.  Its end is seen by `ended`; `close` gives its pipes back."""

    def __init__(self, process: "subprocess.Popen[bytes]", reports: asyncio.StreamReader) -> None:
        self._process = process
        self._reports = reports
        self._transports: list[asyncio.ReadTransport] = []
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Its exit code; the negative number of a signal that ended it."""
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Also its process group and its session."""
        return self._process.pid

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        job_file: Callable[[int], JobFile],
        folder: Path,
        environment: Mapping[str, str],
        output: Output,
        rank: int = 0,
    ) -> "TrainerProcess":
        """Start a trainer in a session of its own, with `folder` as its working folder.

        `job_file` makes its job file from the number of the descriptor that reports go to.  What a rank above 0 writes
        for people is marked with its number.  Raises OSError.
        """
        read_end, write_end = os.pipe()
        try:
            path = folder / (JOB_FILE if rank == 0 else f"job-{rank}.json")
            content = job_file(write_end).model_dump_json()
            await asyncio.to_thread(path.write_text, content, encoding="utf-8")
            process = _spawn([*command, str(path)], write_end, folder, environment)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return await cls._connected(process, read_end, output, f"[rank {rank}] " if rank else "")

    @classmethod
    async def take(
        cls,
        waiting: "WaitingTrainer",
        job_file: Callable[[int], JobFile],
        folder: Path,
        output: Output,
        variables: Mapping[str, str],
    ) -> "TrainerProcess":
        """Give a job to a trainer that was started ahead of it.  Otherwise like `start`."""
        path = folder / JOB_FILE
        content = job_file(waiting.report_descriptor).model_dump_json()
        await asyncio.to_thread(path.write_text, content, encoding="utf-8")
        trainer = await cls._connected(waiting.process, waiting.read_end, output, "")
        trainer.command(TakeCommand(job_file=str(path), environment=dict(variables)))
        return trainer

    @classmethod
    async def _connected(
        cls, process: "subprocess.Popen[bytes]", read_end: int, output: Output, prefix: str
    ) -> "TrainerProcess":
        reports = asyncio.StreamReader(limit=_CHUNK_BYTES)
        trainer = cls(process, reports)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        await trainer._connect(os.fdopen(read_end, "rb", buffering=0), asyncio.StreamReaderProtocol(reports))
        await trainer._connect(process.stdout, output.stream(LogSource.STDOUT, prefix))
        await trainer._connect(process.stderr, output.stream(LogSource.STDERR, prefix))
        return trainer

    async def reports(self) -> AsyncIterator["Sequence[TrainerReport | Garbage]"]:
        """Yield what it reports, in order, as it comes, until it has closed its end; other lines as Garbage.

        A trainer whose reports are not taken waits.
        """
        cutter = LineCutter(LONGEST_REPORT_BYTES)
        while chunk := await self._reports.read(_CHUNK_BYTES):
            yield [_read(line) for line in cutter.feed(chunk)]
        rest = cutter.end()
        if rest is not None:
            yield [Garbage(rest, "it ended in the middle of a line")]

    def command(self, command: TrainerCommand) -> None:
        """Tell it something.  Harmless when it is gone, or does not listen."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(command.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        """Give the pipes back.  What has not been read of them by now is lost."""
        for transport in self._transports:
            transport.close()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    async def _connect(self, pipe: object, protocol: asyncio.BaseProtocol) -> None:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        self._transports.append(transport)

    def _reap(self) -> None:
        code = self._process.poll()
        if code is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self.ended.set_result(code)


@dataclass(frozen=True, slots=True)
class WaitingTrainer:
    """A trainer without a job: it loads what every training needs, and then waits.  Nobody reads what it writes yet."""

    process: "subprocess.Popen[bytes]"
    read_end: int
    """Our end of its report pipe."""
    report_descriptor: int
    """The number that its own end has in the trainer."""

    @classmethod
    def start(cls, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> "WaitingTrainer":
        """Start one.  Raises OSError."""
        read_end, write_end = os.pipe()
        try:
            process = _spawn([*command, WAIT, str(write_end)], write_end, folder, environment)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return cls(process, read_end, write_end)


class Garbage:
    """A line on the report pipe that is no report."""

    def __init__(self, line: bytes, problem: str) -> None:
        excerpt = line[:200].decode(errors="replace")
        self.text = f"not a report: {excerpt!r}{'…' if len(line) > 200 else ''} ({problem})"


def _spawn(
    arguments: Sequence[str], write_end: int, folder: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a process in this very thread: the kernel ends it with the thread that started it (PR_SET_PDEATHSIG)."""
    return subprocess.Popen(  # noqa: S603 - our own program
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pass_fds=(write_end,),
        start_new_session=True,
        cwd=folder,
        env=dict(environment),
    )


def _read(line: bytes) -> "TrainerReport | Garbage":
    try:
        return TRAINER_REPORT.validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        return Garbage(line, problem["msg"])
