"""What every supervisor works with, gathered once by the desk.  Knows nothing of what they do with it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from headrace_server.settings import TrainingSettings
from headrace_server.telemetry.metrics import Metrics
from headrace_server.training.goods import Datasets
from headrace_server.training.jobs import JobStore
from headrace_server.training.leftovers import Leftovers
from headrace_server.training.memory_room import MemoryRoom
from headrace_server.training.owned_tasks import OwnedTasks
from headrace_server.training.publication import Publisher
from headrace_server.training.workers import Workers


@dataclass(frozen=True, slots=True)
class Means:
    """What every supervisor works with."""

    jobs: JobStore
    workers: Workers
    publisher: Publisher
    leftovers: Leftovers
    datasets: Datasets
    settings: TrainingSettings
    metrics: Metrics
    tasks: OwnedTasks
    clock: Callable[[], float] = time.monotonic
    room: MemoryRoom | None = None
    """What jobs share with models; without it they begin whatever they take."""
