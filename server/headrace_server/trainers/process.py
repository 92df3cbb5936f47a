"""The trainer process: prepares, trains, exports, verifies, and reports each of them.

Torch is imported only after the line to the agent stands, because that takes seconds in which the agent may leave.
Exit codes: 0 finished or stopped, 3 failed with a Failed report, 4 the agent is gone, 2 the job file cannot be read.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from headrace_server.errors import HeadraceError
from headrace_server.trainers.job_file import JobFile
from headrace_server.trainers.pipe import Commands, ReportPipe, end_at_once, follow_commands, read_command
from headrace_server.trainers.reports import Failed, Finished, Ready, Stopped, TakeCommand

FINISHED, UNREADABLE, FAILED = 0, 2, 3
WAIT = "--wait"
"""With the number of a descriptor for reports: load everything, and wait for the job on standard input."""
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def main(arguments: Sequence[str]) -> int:
    """Do the job that the file named by the only argument describes."""
    _die_with_parent()
    _share_processors()
    _keep_memory()
    if len(arguments) == 2 and arguments[0] == WAIT:
        taken = _wait_for_job(int(arguments[1]))
        if taken is None:
            return FINISHED
        arguments = [taken]
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m headrace_server.trainers JOB.json\n")
        return UNREADABLE
    try:
        job = JobFile.model_validate_json(Path(arguments[0]).read_bytes())
    except (OSError, ValidationError) as error:
        sys.stderr.write(f"{arguments[0]}: {error}\n")
        return UNREADABLE
    commands = Commands()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: commands.stop.set())
    follow_commands(sys.stdin.fileno(), commands, end_at_once)
    return _do(job, ReportPipe(job.report_descriptor, end_at_once), commands)


def _wait_for_job(descriptor: int) -> str | None:
    """Load everything, say so, and wait; the path of a job file, or None when there will be no job."""
    from headrace_server.trainers.warm import warm_up

    warm_up()
    ReportPipe(descriptor, end_at_once).write(Ready())
    command = read_command(sys.stdin.fileno())
    if not isinstance(command, TakeCommand):
        return None
    os.environ.update(command.environment)
    os.chdir(Path(command.job_file).parent)
    return command.job_file


def _share_processors() -> None:
    """Have torch's threads sleep while they wait for each other; before torch is imported.

    They would otherwise spin, which is faster on an idle machine and far slower as soon as anything else wants a core;
    `tests/benchmarks/LOG.md` has figures.  Whoever starts this process may decide otherwise.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _keep_memory() -> None:
    """Have the C library keep what a step frees for the next one, which takes the same again.

    By default it gives large blocks back to the kernel, which then clears every page that the next step touches.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _do(job: JobFile, pipe: ReportPipe, commands: Commands) -> int:
    try:
        from headrace_server.trainers.training import Training

        is_finished = Training(job, pipe.write, commands.stop, commands.profiles).run()
    except Exception as error:  # noqa: BLE001 - the edge of the process: the agent must hear of whatever it is
        if not isinstance(error, HeadraceError):
            traceback.print_exc()
        pipe.write(Failed(error=type(error).__name__, message=str(error)[:8192]))
        return FAILED
    pipe.write(Finished() if is_finished else Stopped())
    return FINISHED


def _die_with_parent() -> None:
    """Have the kernel kill this process when the agent dies, also when nobody reads standard input."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
