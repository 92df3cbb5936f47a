"""Attempts for an agent to make: a store with a data set in it, an assignment, and a trainer that follows a script."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.storage.local import LocalBlobStore
from headrace_server.trainers.recipe import Recipe
from headrace_server.training.assignment import ASSIGNMENT_FILE, Assignment
from headrace_server.worker.agent import Agent, Ways
from headrace_server.worker.link import Patience
from headrace_server.worker.persistence import Persistence

TRAINER = Path(__file__).with_name("scripted_trainer.py")
DATA = b"a,b\n1,2\n"
WAYS = Ways(
    trainer_command=(sys.executable, "-S", str(TRAINER)),
    fetching=Persistence(first_wait_seconds=0.05, longest_wait_seconds=0.1),
    publishing=Persistence(first_wait_seconds=0.05, longest_wait_seconds=0.1),
    patience=Patience(first_redial_seconds=0.01, longest_redial_seconds=0.1),
)
"""Quick to try again, and as patient as an agent is: what is to run out in a test, it shortens itself."""


class Attempt:
    """One attempt in a folder; `script` is what its trainer does."""

    def __init__(self, folder: Path, socket: Path, script: Sequence[Sequence[Any]] = (), **changes: Any) -> None:
        self.folder = folder / "attempt"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = LocalBlobStore(folder / "store")
        self.assignment = Assignment.model_validate(
            {
                "job": "trainingJobs/j",
                "attempt": 1,
                "token": "secret",
                "server_address": f"unix:{socket}",
                "trainer": "tabular",
                "parameters": {"script": [list(step) for step in script]},
                "recipe": Recipe(seed=1),
                "dataset_key": "datasets/d",
                "dataset_format": DatasetFormat.CSV,
                "dataset_digest": f"sha256:{hashlib.sha256(DATA).hexdigest()}",
                "resume_from": None,
                "store_root": folder / "store",
                "checkpoint_prefix": "checkpoints/j/",
                "artifact_prefix": "exports/j/1/",
                "workspace": self.folder / "workspace",
                "heartbeat_seconds": 0.05,
                "detached_seconds": 60,
                **changes,
            }
        )

    async def prepare(self) -> None:
        """Put the data set into the store, and the assignment into the folder."""
        await self.store.open()
        await self.store.put_bytes("datasets/d", DATA)
        (self.folder / ASSIGNMENT_FILE).write_text(self.assignment.model_dump_json())

    def agent(self, store: Any = None, **changes: Any) -> Agent:
        """An agent in this process."""
        return Agent(self.assignment, self.folder, store or self.store, replace(WAYS, **changes))
