"""Finds out how a version is best run on this machine: from what was measured before, or by measuring it now.

Measurements are rows of the database, one for each version and environment; the files that they name lie on a shelf in
the store.  A file that is missing or damaged makes its measurement void: it is done again.  While a version is being
measured, what is best so far is offered before each plan that takes long to make.  Belongs to the event loop.
"""

import asyncio
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from headrace_server.devices import Devices
from headrace_server.errors import HeadraceError, InvalidModel, ModelFailed, Unsupported
from headrace_server.inference.plans.candidates import Means, candidates
from headrace_server.inference.plans.choice import Decision, decide, is_needed
from headrace_server.inference.plans.environment import describe_environment, digest_of, find_means
from headrace_server.inference.plans.measurement import Measurement, Source, Trial
from headrace_server.inference.plans.measuring import Begun, MeasureJob
from headrace_server.inference.plans.measuring_run import MEASURE_COMMAND, MeasuringFailed, run_measuring
from headrace_server.inference.plans.opening import PlanFiles
from headrace_server.inference.plans.plan import Form, Plan
from headrace_server.inference.plans.shelf import Shelf, key_of
from headrace_server.inference.programs import Program, Programs
from headrace_server.models.calibration import (
    CalibrationRows,
    bounded,
    can_be_stored,
    draw_rows,
    read_rows,
    write_rows,
)
from headrace_server.models.plan_records import PlanRecords
from headrace_server.models.version import ArtifactFormat, ModelVersion
from headrace_server.precision import Precision, PrecisionPolicy
from headrace_server.settings import InferenceSettings
from headrace_server.storage.blob_store import BlobStore
from headrace_server.tensors import Tensors

PROGRAM_FORMATS = (ArtifactFormat.ONNX, ArtifactFormat.TORCH_EXPORT)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS_PER_FIGURE = 0.15
SECONDS_PER_COMPILATION = 240.0
"""On an idle machine the compiler needs a quarter of it for a transformer of 22 million weights."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Planned:
    """A decision with everything that its plans run from, on local disk."""

    decision: Decision
    measurement: Measurement
    files: dict[str, PlanFiles]
    """By the name of the plan."""
    digests: dict[str, str]
    """Of the program that runs, by the name of the plan: what an answer names."""
    rows: Tensors
    """Calibration rows, to warm up with."""
    held: tuple[Program, ...]
    """To be released when nothing runs from them any more."""


class Planner:
    """Plans of the versions of one server, on this machine."""

    def __init__(
        self,
        store: BlobStore,
        records: PlanRecords,
        programs: Programs,
        scratch: Path,
        settings: InferenceSettings,
        devices: Devices,
        means: Means | None = None,
        command: Sequence[str] = MEASURE_COMMAND,
    ) -> None:
        """`command` starts the measuring process; it gets the path of a job file."""
        self._store = store
        self._shelf = Shelf(store, records)
        self._programs = programs
        self._scratch = scratch / "plans"
        self._settings = settings
        self._devices = devices
        self._means = means
        self._command = tuple(command)
        self._environment: dict[str, str] | None = None
        self._turn = asyncio.Lock()
        """One at a time: two would time each other."""

    def wanted(self, policy: PrecisionPolicy) -> Precision:
        """The precision that a policy asks for, the server's default where it leaves it open."""
        return policy.precision or Precision(self._settings.default_precision)

    async def environment(self) -> dict[str, str]:
        """The hardware and the versions that measurements are made on."""
        if self._environment is None:
            self._environment = await asyncio.to_thread(describe_environment, self._devices)
            self._means = self._means or await asyncio.to_thread(find_means, self._devices)
        return self._environment

    async def open(self) -> None:
        """Remove what an earlier process has left behind; to be called before anything is measured."""
        await self._shelf.sweep()

    async def find(self, version: ModelVersion) -> Measurement | None:
        """What was measured of a version in this environment; None when nothing was, or an older release did."""
        return await self._shelf.find(version, digest_of(await self.environment()))

    async def recall(
        self, version: ModelVersion, policy: PrecisionPolicy, *, is_enough_so_far: bool = False, is_prompt: bool = False
    ) -> Planned | None:
        """What an earlier measurement says about a policy, ready to be opened; None when it has to be measured.

        With `is_enough_so_far` also what is best of the plans that were tried, although others were not; with
        `is_prompt` only what is opened about as quickly as the registered program.
        """
        measurement = await self.find(version)
        if measurement is None:
            return None
        if not is_enough_so_far and not await self._covers(measurement, version, policy):
            return None
        registered = next(format_ for format_ in PROGRAM_FORMATS if version.artifact(format_) is not None)
        if is_prompt and not all(plan.is_prompt(registered) for plan in self.decide(measurement, policy).plans):
            return None
        try:
            return await self._ready(version, measurement, policy)
        except ModelFailed as error:
            log.warning("plans.prepared_file_lost", model=str(version.name), problem=str(error))
            await self._shelf.forget(version)
            return None

    async def measure(
        self,
        version: ModelVersion,
        policy: PrecisionPolicy,
        offer: Callable[[Planned], Awaitable[None]] | None = None,
        *,
        again: bool = False,
    ) -> Planned:
        """Measure a version and decide.  Takes minutes; one at a time.  What was measured before counts unless `again`.

        `offer` gets what is best so far, before each plan that takes long to make; it lets go of it like any other.

        Raises ModelFailed when not even the registered program can be measured, StorageFull.
        """
        async with self._turn:
            if not again:
                planned = await self.recall(version, policy)  # whoever had the turn may have measured the same
                if planned is not None:
                    return planned
            started_at = time.monotonic()
            measurement = await self._measure(version, policy, offer)
            log.info(
                "plans.measured",
                model=str(version.name),
                plans=len(measurement.trials),
                seconds=time.monotonic() - started_at,
            )
        return await self._ready(version, measurement, policy)

    def decide(self, measurement: Measurement, policy: PrecisionPolicy) -> Decision:
        """What a policy makes of a measurement."""
        return decide(measurement, self.wanted(policy), policy.tolerances, self._settings.max_batch_rows)

    async def calibrate(self, version: ModelVersion, inputs: Tensors) -> int:
        """Keep rows that fit the signature, and forget what was measured with others; returns how many are kept.

        Raises Unsupported for inputs that cannot be stored, StorageFull.
        """
        if not can_be_stored(version.signature):
            raise Unsupported(f"calibrating {version.name}", "rows of text, BF16 and FP8 cannot be stored")
        rows = bounded(CalibrationRows(inputs), version.signature)
        path = self._scratch / f"{secrets.token_hex(16)}.safetensors"
        try:
            await asyncio.to_thread(_write, rows, path)
            await self._store.put_file(self.calibration_key(version), path)
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        await self._shelf.forget(version)
        return rows.num_rows

    async def release(self, planned: Planned) -> None:
        """Remove the local copies of what nothing runs from any more."""
        for program in planned.held:
            await self._programs.release(program)

    def calibration_key(self, version: ModelVersion) -> str:
        """Where rows lie that somebody supplied for a version."""
        return f"calibration/{version.model}/{version.version}.safetensors"

    # Inside.

    async def _candidates(self, version: ModelVersion, policy: PrecisionPolicy) -> list[Plan]:
        await self.environment()
        assert self._means is not None
        return candidates({artifact.format for artifact in version.artifacts}, self.wanted(policy), self._means)

    async def _covers(self, measurement: Measurement, version: ModelVersion, policy: PrecisionPolicy) -> bool:
        known = {trial.plan for trial in measurement.trials}
        return all(
            plan in known or not is_needed(plan, measurement.trials, policy.tolerances)
            for plan in await self._candidates(version, policy)
        )

    async def _ready(self, version: ModelVersion, measurement: Measurement, policy: PrecisionPolicy) -> Planned:
        decision = self.decide(measurement, policy)
        held: list[Program] = []
        files: dict[str, PlanFiles] = {}
        digests: dict[str, str] = {}
        try:
            sources = {}
            for plan in decision.plans:
                if plan.source not in sources:
                    artifact = version.artifact(plan.source)
                    assert artifact is not None
                    sources[plan.source] = await self._programs.fetch(version, artifact)
                    held.append(sources[plan.source])
                prepared: Program | None = None
                trial = measurement.trial(plan.name)
                if trial is not None and trial.prepared is not None:
                    key = key_of(version, digest_of(measurement.environment), trial.prepared)
                    prepared = await self._programs.fetch_prepared(version, key, trial.prepared.digest)
                    held.append(prepared)
                files[plan.name] = PlanFiles(sources[plan.source].path, prepared.path if prepared is not None else None)
                digests[plan.name] = prepared.digest if prepared is not None else sources[plan.source].digest
        except BaseException:
            for program in held:
                await self._programs.release(program)
            raise
        rows = await self._rows(version)
        return Planned(decision, measurement, files, digests, rows, tuple(held))

    async def _rows(self, version: ModelVersion) -> Tensors:
        folder = self._scratch / secrets.token_hex(16)
        try:
            await asyncio.to_thread(folder.mkdir, parents=True)
            path, _ = await self._calibration(version, folder)
            if path is not None:
                return (await asyncio.to_thread(read_rows, path, version.signature)).inputs
        except (InvalidModel, OSError) as error:
            log.warning("plans.rows_unreadable", model=str(version.name), problem=str(error))
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return draw_rows(version.signature).inputs

    async def _measure(
        self,
        version: ModelVersion,
        policy: PrecisionPolicy,
        offer: Callable[[Planned], Awaitable[None]] | None,
    ) -> Measurement:
        folder = self._scratch / secrets.token_hex(16)
        held: list[Program] = []
        started_at = time.monotonic()
        stored: set[str] = set()

        async def keep(begun: Begun, trials: Sequence[Trial]) -> Measurement:
            measurement = await self._verdict(begun, trials, time.monotonic() - started_at)
            await self._keep(version, measurement, folder, stored)
            return measurement

        async def heard(begun: Begun, trials: Sequence[Trial], trying: Plan) -> None:
            if offer is not None and trying.form is Form.COMPILED:
                await offer(await self._ready(version, await keep(begun, trials), policy))

        try:
            await asyncio.to_thread(folder.mkdir, parents=True)
            for artifact_format in PROGRAM_FORMATS:
                artifact = version.artifact(artifact_format)
                if artifact is not None:
                    held.append(await self._programs.fetch(version, artifact))
            calibration, source = await self._calibration(version, folder)
            job = MeasureJob(
                sources=dict(
                    zip([f for f in PROGRAM_FORMATS if version.artifact(f)], [p.path for p in held], strict=True)
                ),
                signature=version.signature,
                calibration=calibration,
                calibration_source=source,
                plans=tuple(await self._candidates(version, policy)),
                tolerances=policy.tolerances,
                sizes=tuple(size for size in SIZES if size <= self._settings.max_batch_rows),
                thread_counts=tuple(sorted({1, self._devices.num_cores})),
                seconds_per_figure=SECONDS_PER_FIGURE,
                seconds_per_compilation=SECONDS_PER_COMPILATION,
                folder=folder,
            )
            deadline = started_at + self._settings.measure_seconds
            return await keep(*await run_measuring(job, deadline, self._command, heard))
        except (MeasuringFailed, OSError) as error:
            raise ModelFailed(str(version.name), f"its plans cannot be measured: {error}") from error
        finally:
            for program in held:
                await self._programs.release(program)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _verdict(self, begun: Begun, trials: Sequence[Trial], seconds: float) -> Measurement:
        """What was found; the file of a plan that cannot run is not kept."""
        return Measurement(
            environment=await self.environment(),
            source=begun.source,
            why_drawn=begun.why_drawn,
            num_rows=begun.num_rows,
            reference=begun.reference,
            is_higher_better=begun.is_higher_better,
            metric_name=begun.metric_name,
            trials=tuple(trial.model_copy(update={"prepared": None}) if trial.problem else trial for trial in trials),
            seconds=seconds,
            measured_at=datetime.now(UTC),
        )

    async def _keep(self, version: ModelVersion, measurement: Measurement, folder: Path, stored: set[str]) -> None:
        """Put what was found into the database, and its files into the store unless they are among `stored`."""
        for trial in measurement.trials:
            file = trial.prepared
            if file is not None and file.digest not in stored:
                await self._shelf.keep_file(version, digest_of(measurement.environment), file, folder / file.name)
                stored.add(file.digest)
        await self._shelf.keep(version, measurement)

    async def _calibration(self, version: ModelVersion, folder: Path) -> tuple[Path | None, Source]:
        """The rows to judge with: those that somebody supplied, else those that training stored."""
        path = folder / "rows.safetensors"
        try:
            await self._store.fetch(self.calibration_key(version), path)
        except KeyError:
            pass
        else:
            return path, Source.CALLER
        artifact = version.artifact(ArtifactFormat.CALIBRATION)
        if artifact is None:
            return None, Source.DRAWN
        try:
            blob = await self._store.fetch(artifact.key, path)
        except (KeyError, HeadraceError) as error:
            log.warning("plans.calibration_lost", model=str(version.name), problem=str(error))
            return None, Source.DRAWN
        return (path, Source.TRAINING) if blob.digest == artifact.digest else (None, Source.DRAWN)


def _write(rows: CalibrationRows, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(rows, path)
