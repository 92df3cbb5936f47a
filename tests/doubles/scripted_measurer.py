"""A measuring process that finds what the test says: `python scripted_measurer.py BEHAVIOUR JOB.json`.

`fast`          every plan is ten times as fast as the one before it, and exact
`die:NAME`      dies of a segmentation fault when it tries the plan with this name, else as `fast`
`split`         every plan is ten times as fast as the one before it, but for single rows, which the first is best at
`wait:PATH`     as `fast`, but compiles until this file is there, and then in vain
`die`           dies before it has said anything
`hang`          says what it has begun with, and then nothing any more
"""

import os
import signal
import sys
import time
from pathlib import Path

from headrace_server.inference.plans.difference import Difference
from headrace_server.inference.plans.measurement import PreparedFile, Source, Speed, Trial
from headrace_server.inference.plans.measuring import LINE, RESULTS_FILE, Begun, Line, MeasureJob, Tried, Trying
from headrace_server.inference.plans.plan import Form, Plan
from headrace_server.inference.plans.preparing import prepare
from headrace_server.inference.plans.trying import describe_file
from headrace_server.models.calibration import draw_rows


def main(behaviour: str, job_file: str) -> None:
    job = MeasureJob.model_validate_json(Path(job_file).read_bytes())

    def write(line: Line) -> None:
        with (job.folder / RESULTS_FILE).open("ab") as file:
            file.write(LINE.dump_json(line) + b"\n")

    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    write(
        Begun(
            source=Source.DRAWN, why_drawn="", num_rows=1, reference="", is_higher_better=True, metric_name=""
        )
    )  # fmt: skip
    if behaviour == "hang":
        time.sleep(600)
    for number, plan in enumerate(job.plans):
        write(Trying(plan=plan.name))
        if behaviour == f"die:{plan.name}":
            os.kill(os.getpid(), signal.SIGSEGV)
        if behaviour.startswith("wait:") and plan.form is Form.COMPILED:
            while not Path(behaviour.removeprefix("wait:")).exists():
                time.sleep(0.01)
            write(Tried(trial=Trial(plan=plan, problem="it could not be compiled")))
            continue
        single = 0.1**9 if behaviour == "split" and number == 0 else None
        write(Tried(trial=_trial(job, plan, 0.1**number, single)))


def _trial(job: MeasureJob, plan: Plan, seconds: float, single: float | None) -> Trial:
    prepared: PreparedFile | None = None
    if plan.prepared_file is not None:
        target = job.folder / plan.prepared_file
        prepare(plan, job.sources[plan.source], job.signature, draw_rows(job.signature).inputs, target, 60)
        prepared = describe_file(target)
    exact = Difference(
        rows=1, max_absolute=0, mean_absolute=0, max_relative=0, min_cosine=1, agreement=None, num_nonfinite=0
    )
    speeds = tuple(
        Speed(rows=rows, threads=1, seconds=single if single is not None and rows == 1 else seconds * (rows + 9))
        for rows in job.sizes
    )
    return Trial(plan=plan, differences=(exact,), speeds=speeds, prepared=prepared)


if __name__ == "__main__":
    main(*sys.argv[1:])
