"""Runs the measuring process and reads what it finds, also when it dies of what it tries.

It is started by exec, in a session of its own, with a clean environment, and killed whole when its time is over or
nobody wants its result any more.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from headrace_server.inference.plans.measurement import Trial
from headrace_server.inference.plans.measuring import LINE, RESULTS_FILE, Begun, MeasureJob, Tried, Trying
from headrace_server.launchers.process import clean_environment

MEASURE_COMMAND = (sys.executable, "-P", "-m", "headrace_server.inference.plans.measuring")
LAST_WORDS_BYTES = 2000
POLITENESS = 5
"""How much nicer than the server the process is: calls go first."""

log = structlog.get_logger()


class MeasuringFailed(Exception):
    """Not even the registered program could be measured."""


async def run_measuring(
    job: MeasureJob, deadline: float, command: Sequence[str] = MEASURE_COMMAND
) -> tuple[Begun, list[Trial]]:
    """Try every plan of the job until `deadline` (time.monotonic()); what could not be tried says so.

    Raises MeasuringFailed, OSError.
    """
    begun: Begun | None = None
    trials: dict[str, Trial] = {}
    left = list(job.plans)
    while left:
        base = job.plans[0]
        plans = left if left[0] is base else [base, *left]
        ending = await _run_once(
            job.model_copy(update={"plans": tuple(plans), "known": tuple(trials.values())}), deadline, command
        )
        heard, tried, trying = await asyncio.to_thread(_read_results, job.folder / RESULTS_FILE)
        begun = begun or heard
        for trial in tried:
            trials.setdefault(trial.plan.name, trial)
        if ending is None:
            break
        if base.name not in trials:
            raise MeasuringFailed(f"the measuring process {ending}")
        if trying is not None and trying not in trials:
            guilty = next(plan for plan in job.plans if plan.name == trying)
            trials[trying] = Trial(plan=guilty, problem=f"the process that tried it {ending}")
        log.warning("plans.measuring_died", ending=ending, trying=trying)
        left = [plan for plan in left if plan.name not in trials]
        if time.monotonic() >= deadline:
            for plan in left:
                trials[plan.name] = Trial(plan=plan, problem="it was not tried: the time for measuring was over")
            break
    if begun is None:
        raise MeasuringFailed("the measuring process said nothing")
    return begun, [trials[plan.name] for plan in job.plans if plan.name in trials]


async def _run_once(job: MeasureJob, deadline: float, command: Sequence[str]) -> str | None:
    """Run one process; None when it has done everything, else how it ended."""
    job_file, words = job.folder / "job.json", job.folder / "output.log"
    await asyncio.to_thread(_write_job, job, job_file)
    environment = {
        **clean_environment(os.environ),
        # What compilers keep goes with the folder.
        "TORCHINDUCTOR_CACHE_DIR": str(job.folder / "inductor"),
        "TMPDIR": str(job.folder),
    }
    with words.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            str(job_file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=job.folder,
            start_new_session=True,
        )
    try:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, POLITENESS)
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            code = await process.wait()
    except TimeoutError:
        return "was stopped: the time for measuring was over"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its compilers
        await process.wait()
    if code == 0:
        return None
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with exit code {code}: {await asyncio.to_thread(_last_words, words)}"


def _write_job(job: MeasureJob, path: Path) -> None:
    path.write_text(job.model_dump_json(), encoding="utf-8")
    (job.folder / RESULTS_FILE).unlink(missing_ok=True)


def _read_results(path: Path) -> tuple[Begun | None, list[Trial], str | None]:
    """What was written: the beginning, the trials, and the name of the plan that was tried last."""
    begun: Begun | None = None
    trials: list[Trial] = []
    trying: str | None = None
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # it died while it wrote
            match LINE.validate_json(line):
                case Begun() as begun:
                    pass
                case Trying(plan=trying):
                    pass
                case Tried(trial=trial):
                    trials.append(trial)
    return begun, trials, trying


def _last_words(path: Path) -> str:
    text = path.read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace").strip()
    return text.rpartition("\n")[2][:300]
