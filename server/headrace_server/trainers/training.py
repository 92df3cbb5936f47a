"""One training from its job file to its export: the order of phases, with everything each of them needs.

A stop is obeyed between phases, and inside the loop.  Before the first step it leaves no checkpoint; after the last one
the checkpoint says that all steps are done, so that a later process goes straight to the export.
"""

import contextlib
import hashlib
import importlib
import queue
import threading
from collections.abc import Callable

import torch
from torch import nn

from headrace_server import __version__
from headrace_server.errors import HeadraceError, InvalidDataset, InvalidSpec, Violation
from headrace_server.kernels.gate import TrainingGate
from headrace_server.trainers.arithmetic import choose_device, choose_precision, use_algorithms, use_threads
from headrace_server.trainers.catalogue import Families
from headrace_server.trainers.checkpoint import read_checkpoint, read_weights
from headrace_server.trainers.checkpoint_writer import CheckpointWriter
from headrace_server.trainers.compile_cache import CompileCache
from headrace_server.trainers.environment import describe_environment, digest_of_code
from headrace_server.trainers.evaluations import Best
from headrace_server.trainers.failures import OutOfMemory
from headrace_server.trainers.family import Family, Parameters
from headrace_server.trainers.job_file import JobFile
from headrace_server.trainers.loop import Loop, Outcome
from headrace_server.trainers.memory import SHARE_FOR_ROWS, free_bytes
from headrace_server.trainers.profiling import Profiling
from headrace_server.trainers.randomness import Use, derive_seed
from headrace_server.trainers.ranks import Place, World, joined
from headrace_server.trainers.recipe import Sharing
from headrace_server.trainers.reports import ExportWritten, PhaseChanged, TrainerReport, WarningRaised
from headrace_server.trainers.task import BuildTask, Material, Task
from headrace_server.trainers.yielding import Yielding


class Training:
    """One job in this process.  Raises HeadraceError or OSError for what the world did."""

    def __init__(
        self,
        job: JobFile,
        report: Callable[[TrainerReport], None],
        stop: threading.Event,
        profiles: "queue.SimpleQueue[int] | None" = None,
    ) -> None:
        self._job, self._stop = job, stop
        self._profiles = profiles
        recipe = job.recipe
        self._place = Place.from_environment()
        self._report = report if self._place.rank == 0 else _only_warnings(report)
        self._device = choose_device(recipe.device, self._place.local_rank)
        precision = choose_precision(recipe.precision, self._device)
        use_algorithms(deterministic=recipe.deterministic, precision=precision, device=self._device)
        self._environment = {
            **describe_environment(self._device, use_threads(recipe.cpu_threads, self._place.local_size)),
            "precision": precision.value,
            "deterministic": str(recipe.deterministic).lower(),
            "dataset": job.dataset_digest,
            "ranks": str(self._place.size),
        }

    def run(self) -> bool:
        """Train and export; False when it was told to stop before it was done."""
        try:
            return self._run()
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            problem = str(error).partition("\n")[0][:500]
            raise OutOfMemory(str(self._device), self._job.recipe.batch_size, problem) from error

    def _run(self) -> bool:
        family, parameters = self._family()
        self._environment |= {"trainer": family.name, "trainer_code": digest_of_code(family.code)}
        self._enter("preparing_data")
        task = self._build_task(family, parameters)
        if self._stop.is_set():
            return False
        self._enter("building")
        torch.manual_seed(derive_seed(self._job.recipe.seed, Use.NETWORK))
        network = task.make_network()
        best = self._train(task, network)
        if best is None:
            return False
        if self._place.rank > 0:
            return True  # the first one exports
        return not self._stop.is_set() and self._export(task, network, best)

    def _train(self, task: Task, network: nn.Module) -> Best | None:
        """Train to the end; None when it was told to stop before."""
        with contextlib.ExitStack() as opened:
            checkpoints = None
            if self._place.rank == 0:
                checkpoints = CheckpointWriter(self._job.workspace / "checkpoints", self._report)
                opened.callback(checkpoints.close)
            world = opened.enter_context(joined(self._place, self._device, self._job.recipe.strategy))
            loop = self._make_loop(task, network, checkpoints, world)
            self._enter("training")
            return loop.best if loop.run() is Outcome.COMPLETED else None

    def _family(self) -> tuple[Family, Parameters]:
        families = Families()
        family = families.get(self._job.trainer)
        if family is None:
            why = families.unavailable.get(self._job.trainer, "it is not installed here")
            raise InvalidSpec([Violation("trainer", f"there is no trainer {self._job.trainer!r}: {why}")])
        return family, family.parameters.model_validate(self._job.parameters)

    def _build_task(self, family: Family, parameters: Parameters) -> Task:
        module, _, function = family.code.partition(":")
        build: BuildTask = getattr(importlib.import_module(module), function)
        material = Material(
            path=self._job.dataset_path,
            format=self._job.dataset_format,
            holdout_fraction=self._job.recipe.evaluation.holdout_fraction,
            seed=self._job.recipe.seed,
            memory_bytes=int(free_bytes() * SHARE_FOR_ROWS) // self._place.local_size,
            scratch=self._job.workspace / "rows",
            warn=self._warn,
        )
        task = build(parameters, material)
        self._check_dataset()  # after it was read, so that what was read is what it says
        return task

    def _check_dataset(self) -> None:
        """Raise InvalidDataset if the content is not, or no longer, what its digest says."""
        if not self._job.dataset_digest:
            return
        with self._job.dataset_path.open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != self._job.dataset_digest:
            raise InvalidDataset(f"its content has changed: it has the digest {found}, not {self._job.dataset_digest}")

    def _make_loop(self, task: Task, network: nn.Module, checkpoints: CheckpointWriter | None, world: World) -> Loop:
        loop = Loop(
            task,
            network,
            self._job.recipe,
            device=self._device,
            report=self._report,
            checkpoints=checkpoints,
            stop=self._stop,
            versions=self._environment,
            world=world,
            profiling=self._profiling(),
            yielding=self._yielding(),
            compile_cache=self._compile_cache(),
        )
        if self._job.resume_from is not None:
            loop.restore(read_checkpoint(self._job.resume_from))
        elif self._job.start_from is not None:
            loop.begin_with(read_weights(self._job.start_from))
        return loop

    def _yielding(self) -> Yielding | None:
        placement = self._job.recipe.placement
        if self._job.gate is None or placement.mode is not Sharing.YIELD:
            return None
        # Ranks must agree on their micro-batches, and their sizes decide the last bits.
        adapts = self._place.size == 1 and not self._job.recipe.deterministic
        return Yielding(TrainingGate(self._job.gate), placement, self._device, adapts=adapts)

    def _compile_cache(self) -> CompileCache | None:
        folder = self._job.compile_cache
        return None if folder is None else CompileCache(folder, self._job.compile_cache_bytes)

    def _profiling(self) -> Profiling | None:
        if self._profiles is None or self._place.rank > 0:
            return None
        return Profiling(self._job.workspace / "profiles", self._profiles, self._report)

    def _export(self, task: Task, network: nn.Module, best: Best) -> bool:
        self._enter("exporting")
        from headrace_server.trainers.export import Export  # it takes seconds to import, and not every process needs it

        network.to("cpu").load_state_dict(dict(best.weights))
        network.eval()
        export = Export(self._job.workspace / "export", task.program(network), self._warn)
        export.write(network)
        if self._stop.is_set():
            return False
        self._enter("verifying")
        folder = export.describe(best, export.verify(), __version__, self._environment)
        self._report(ExportWritten(folder=str(folder)))
        return True

    def _enter(self, phase: str) -> None:
        self._report(PhaseChanged(phase=phase))

    def _warn(self, code: str, message: str) -> None:
        self._report(WarningRaised(code=code, message=message))


def _only_warnings(report: Callable[[TrainerReport], None]) -> Callable[[TrainerReport], None]:
    """What ranks after the first have to say: all else would be said twice."""

    def filtered(said: TrainerReport) -> None:
        if isinstance(said, WarningRaised):
            report(said)

    return filtered


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # What torch raises when the host has no memory is a bare RuntimeError.
    return not isinstance(error, HeadraceError) and "can't allocate memory" in str(error)
