"""Puts workers to work and takes them away: assignments, folders, launching, killing.

Knows no states: what the coming and going of a worker means for its job is decided elsewhere.
"""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from headrace_server.datasets.dataset import DatasetVersion
from headrace_server.launchers.launcher import Launcher
from headrace_server.settings import TrainingSettings
from headrace_server.training.assignment import ASSIGNMENT_FILE, Assignment
from headrace_server.training.attempt import Attempt
from headrace_server.training.job import Job

AGENT_LOG = "agent.log"
LOG_TAIL_BYTES = 16_384

log = structlog.get_logger()


def checkpoint_prefix(job: str) -> str:
    """Where the checkpoints of a job lie in the store."""
    return f"checkpoints/{job}/"


def profile_prefix(job: str) -> str:
    """Where the traces of a job lie in the store."""
    return f"profiles/{job}/"


def export_prefix(job: str, attempt: int) -> str:
    """Where what one worker of a job exports lies in the store."""
    return f"exports/{job}/{attempt}/"


class Workers:
    """The processes of workers, and the folder that each has to itself: `<workspaces>/<job>/<attempt>`."""

    def __init__(
        self,
        launcher: Launcher,
        settings: TrainingSettings,
        *,
        worker_address: str,
        workspaces: Path,
        store_root: Path,
        gate: Path | None = None,
    ) -> None:
        self._gate = gate
        self._launcher = launcher
        self._settings = settings
        self._worker_address = worker_address
        self._workspaces = workspaces
        self._store_root = store_root

    async def start(self, job: Job, attempt: Attempt, dataset: DatasetVersion) -> None:
        """Launch the agent of an attempt, which continues from the job's newest checkpoint.

        Raises CannotLaunch, or OSError when the folder cannot be written.
        """
        folder = self._folder(job.id, attempt.number)
        formation = self._launcher.form(job.id, attempt.number, job.spec.num_ranks)
        assignment = Assignment(
            job=str(job.name),
            attempt=attempt.number,
            token=attempt.token,
            server_address=self._worker_address,
            trainer=job.spec.trainer,
            parameters=job.spec.parameters,
            recipe=job.spec.recipe,
            dataset_key=dataset.blob_key,
            dataset_format=dataset.format,
            dataset_digest=dataset.digest,
            resume_from=None if job.latest_checkpoint is None else job.latest_checkpoint.uri,
            start_from=job.spec.start_from,
            num_ranks=job.spec.num_ranks // formation.num_nodes,
            formation=formation,
            store_patience_seconds=self._settings.store_patience_seconds,
            gate=self._gate,
            compile_cache=self._workspaces.parent / "compiled",
            store_root=self._store_root,
            checkpoint_prefix=checkpoint_prefix(job.id),
            profile_prefix=profile_prefix(job.id),
            artifact_prefix=export_prefix(job.id, attempt.number),
            workspace=folder,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            detached_seconds=self._settings.detached_seconds,
        )
        await asyncio.to_thread(_write_secret, folder / ASSIGNMENT_FILE, assignment.model_dump_json())
        await self._launcher.launch(job.id, attempt.number, folder)

    async def ending(self, job: str, attempt: Attempt) -> str | None:
        """How the agent's process ended, for people; None while it runs, or may still run."""
        return await self._launcher.ending(job, attempt.number, self._folder(job, attempt.number))

    async def remove(self, job: str, attempt: Attempt, patience_seconds: float = 0) -> int:
        """Make sure that no process of an attempt is left, then remove its folder; returns how many were killed.

        An agent that has said its last word has so much time to end by itself.

        Raises CannotKill when a process survives that.
        """
        if attempt.number == 0:
            return 0
        folder = self._folder(job, attempt.number)
        if patience_seconds > 0:
            await self._launcher.wait(job, attempt.number, folder, patience_seconds)
        num_killed = await self._launcher.kill(job, attempt.number, folder, attempt.trainer_pid)
        if num_killed:
            log.warning("training.worker_killed", job=job, attempt=attempt.number, num_killed=num_killed)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return num_killed

    async def last_lines(self, job: str, attempt: Attempt) -> tuple[str, ...]:
        """What the agent of an attempt wrote last; nothing when it wrote nothing."""
        return await asyncio.to_thread(_tail, self._folder(job, attempt.number) / AGENT_LOG)

    async def remove_job(self, job: str) -> None:
        """Remove every process and folder that is left of a job that is over."""
        for number in await asyncio.to_thread(_attempts, self._workspaces / job):
            await self.remove(job, Attempt(number=number))
        await asyncio.to_thread(shutil.rmtree, self._workspaces / job, ignore_errors=True)

    async def jobs_with_folders(self) -> Sequence[str]:
        """The ids of all jobs of which a folder is left."""
        return await asyncio.to_thread(_names, self._workspaces)

    def _folder(self, job: str, attempt: int) -> Path:
        return self._workspaces / job / str(attempt)


def _write_secret(path: Path, text: str) -> None:
    """Write a file that only this user can read; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _tail(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            return tuple(file.read().decode("utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


def _attempts(folder: Path) -> list[int]:
    return sorted(int(name) for name in _names(folder) if name.isdecimal())
