"""The measuring process: tries the plans of one version, one after the other, and writes what it finds.

`python -P -m headrace_server.inference.plans.measuring JOB.json`.  Started by the server with exec, in a session of its
own: it imports torch, needs gigabytes while it compiles, and may be brought down by the code that it tries.  Therefore
every trial is a line of `results.jsonl` as soon as it is over, and the name of the next plan is written before it is
tried: whoever reads the file knows which plan a dead process died of.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from headrace_server.errors import InvalidModel
from headrace_server.inference.plans.choice import is_needed
from headrace_server.inference.plans.ending import die_with_parent
from headrace_server.inference.plans.measurement import Source, Trial
from headrace_server.inference.plans.plan import Plan
from headrace_server.inference.plans.trying import Bench, batch_of, says_classes, try_plan
from headrace_server.models.calibration import CalibrationRows, draw_rows, read_rows
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Tolerances
from headrace_server.tensors import Signature, Tensors

RESULTS_FILE = "results.jsonl"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class MeasureJob(_Message):
    """All that the process needs to know."""

    sources: dict[ArtifactFormat, Path]
    signature: Signature
    calibration: Path | None
    """A file of rows; None: draw some."""
    calibration_source: Source
    plans: tuple[Plan, ...]
    """The registered program in 32 bits first."""
    tolerances: Tolerances
    """Decide what of a plan has to be left in longer numbers to rescue it."""
    known: tuple[Trial, ...] = ()
    """Trials of an earlier process, which died."""
    sizes: tuple[int, ...]
    thread_counts: tuple[int, ...]
    seconds_per_figure: float
    seconds_per_compilation: float
    """What takes longer to compile is given up."""
    folder: Path
    """Where prepared files and results go."""


class Begun(_Message):
    """The rows are there."""

    kind: Literal["begun"] = "begun"
    source: Source
    why_drawn: str
    num_rows: int
    reference: str
    is_higher_better: bool
    metric_name: str


class Trying(_Message):
    """A plan is about to be tried."""

    kind: Literal["trying"] = "trying"
    plan: str


class Tried(_Message):
    """A plan was tried."""

    kind: Literal["tried"] = "tried"
    trial: Trial


Line = Annotated[Begun | Trying | Tried, Field(discriminator="kind")]
LINE: TypeAdapter[Line] = TypeAdapter(Line)


def main(arguments: list[str]) -> int:
    """Do the job that the file named by the only argument describes."""
    die_with_parent()
    job = MeasureJob.model_validate_json(Path(arguments[0]).read_bytes())
    warnings.simplefilter("ignore")  # of exporters and quantisers, about themselves
    logging.disable(logging.WARNING)
    rows, source, why_drawn = _rows(job)
    bench = Bench(
        sources=job.sources,
        signature=job.signature,
        rows=rows,
        sizes=job.sizes if job.signature.is_batchable else (1,),
        thread_counts=job.thread_counts,
        folder=job.folder,
        seconds_per_figure=job.seconds_per_figure,
        seconds_per_compilation=job.seconds_per_compilation,
        base={},
        references=_references(rows, job),
        tolerances=job.tolerances,
    )
    target = next(iter(rows.targets), "")
    is_right = bool(target) and says_classes(bench, target)
    _write(
        job,
        Begun(
            source=source,
            why_drawn=why_drawn,
            num_rows=rows.num_rows,
            reference="trained network" if bench.references else job.plans[0].name,
            is_higher_better=is_right or not target,
            metric_name="" if not target else "accuracy" if is_right else "rmse",
        ),
    )
    trials = list(job.known)
    for plan in job.plans:
        if is_needed(plan, trials, job.tolerances):
            _write(job, Trying(plan=plan.name))
            trials.append(try_plan(plan, bench))
            _write(job, Tried(trial=trials[-1]))
    return 0


def _rows(job: MeasureJob) -> tuple[CalibrationRows, Source, str]:
    if job.calibration is None:
        return draw_rows(job.signature), Source.DRAWN, "no rows are stored with the version"
    try:
        return read_rows(job.calibration, job.signature), job.calibration_source, ""
    except InvalidModel as error:
        return draw_rows(job.signature), Source.DRAWN, str(error)


def _references(rows: CalibrationRows, job: MeasureJob) -> dict[int, Tensors]:
    """The trained network's own answers, where they are stored; then also the 32-bit program has something to prove."""
    if not rows.outputs or not job.signature.is_batchable:
        return {}
    return {size: batch_of(rows.outputs, size, job.signature) for size in job.sizes}


def _write(job: MeasureJob, line: Line) -> None:
    with (job.folder / RESULTS_FILE).open("ab") as file:
        file.write(LINE.dump_json(line) + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
