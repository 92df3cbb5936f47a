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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import structlog

from headrace_server.inference.plans.measurement import Trial
from headrace_server.inference.plans.measuring import LINE, RESULTS_FILE, Begun, MeasureJob, Tried, Trying
from headrace_server.inference.plans.plan import Plan
from headrace_server.launchers.process import clean_environment
from headrace_server.niceness import be_nice

MEASURE_COMMAND = (sys.executable, "-P", "-m", "headrace_server.inference.plans.measuring")
LAST_WORDS_BYTES = 2000
POLITENESS = 5
"""How much nicer than the server the process is: calls go first."""

LOOK_SECONDS = 0.2
"""How often what the process has found is looked at while it is under way."""

Heard: TypeAlias = Callable[[Begun, Sequence[Trial], Plan], Awaitable[None]]
"""Gets what was begun with, the trials so far, and the plan that is tried next."""

log = structlog.get_logger()


class MeasuringFailed(Exception):
    """Not even the registered program could be measured."""


async def run_measuring(
    job: MeasureJob, deadline: float, command: Sequence[str] = MEASURE_COMMAND, heard: Heard | None = None
) -> tuple[Begun, list[Trial]]:
    """Try every plan of the job until `deadline` (time.monotonic()); what could not be tried says so.

    `heard` is called with what is known so far whenever the next plan is about to be tried.  Raises MeasuringFailed,
    OSError.
    """
    begun: Begun | None = None
    trials: dict[str, Trial] = {}
    left = list(job.plans)
    while left:
        base = job.plans[0]
        plans = left if left[0] is base else [base, *left]
        run = job.model_copy(update={"plans": tuple(plans), "known": tuple(trials.values())})
        ending = await _run_once(run, deadline, command, heard)
        found = await asyncio.to_thread(_read_results, job.folder / RESULTS_FILE)
        begun, trying = begun or found.begun, found.trying
        for trial in found.trials:
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


async def _run_once(job: MeasureJob, deadline: float, command: Sequence[str], heard: Heard | None) -> str | None:
    """Run one process; None when it has done everything, else how it ended."""
    job_file, words = job.folder / "job.json", job.folder / "output.log"
    await asyncio.to_thread(_write_job, job, job_file)
    environment = {
        **clean_environment(os.environ),
        # What compilers keep goes with the folder.
        "TORCHINDUCTOR_CACHE_DIR": str(job.folder / "inductor"),
        "TMPDIR": str(job.folder),
        **{name: value for name, value in os.environ.items() if name == "CXX"},  # as whoever looked for it has
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
        await asyncio.to_thread(be_nice, process.pid, POLITENESS)
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            if heard is None:
                code = await process.wait()
            else:
                code = await _follow(process, job, heard)
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


async def _follow(process: asyncio.subprocess.Process, job: MeasureJob, heard: Heard) -> int:
    """Wait for the process, and tell each time it goes on to another plan."""
    plans = {plan.name: plan for plan in job.plans}
    told: str | None = None
    ending = asyncio.ensure_future(process.wait())
    try:
        while not ending.done():
            await asyncio.wait((ending,), timeout=LOOK_SECONDS)
            found = await asyncio.to_thread(_read_results, job.folder / RESULTS_FILE)
            if found.begun is not None and found.trying is not None and found.trying != told:
                told = found.trying
                await heard(found.begun, found.trials, plans[told])
        return ending.result()
    finally:
        ending.cancel()


@dataclass(slots=True)
class _Found:
    """What a process has written."""

    begun: Begun | None = None
    trials: list[Trial] = field(default_factory=list)
    trying: str | None = None
    """The plan that was begun with last."""


def _write_job(job: MeasureJob, path: Path) -> None:
    path.write_text(job.model_dump_json(), encoding="utf-8")
    (job.folder / RESULTS_FILE).unlink(missing_ok=True)


def _read_results(path: Path) -> _Found:
    found = _Found()
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for text in file:
            if not text.endswith(b"\n"):
                break  # it is being written, or its writer died over it
            match LINE.validate_json(text):
                case Begun() as begun:
                    found.begun = begun
                case Trying(plan=trying):
                    found.trying = trying
                case Tried(trial=trial):
                    found.trials.append(trial)
    return found


def _last_words(path: Path) -> str:
    text = path.read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace").strip()
    return text.rpartition("\n")[2][:300]
