"""One worker of a job as the database remembers it, so that a new server process can go on where the last one was."""

from pydantic import BaseModel, ConfigDict

from headrace_server.training.session import TrainerEnded


class Attempt(BaseModel):
    """One worker: its number, its secret, and how far its reports are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = 0
    """Counted from 1 in each job; 0 before the first."""
    token: str = ""
    acknowledged: int = 0
    """The last of its reports that is kept."""
    pid: int = 0
    """The agent's process; 0 until it has attached."""
    host: str = ""
    trainer_pid: int = 0
    """The trainer's process group; 0 while none is known."""
    manifest_key: str = ""
    """Of the export that it has published; empty before."""
    evaluated_step: int = -1
    """The last step of which the history has an evaluation, by whichever worker; goes over to the next.  -1: none."""
    is_preempted: bool = False
    """Whether it was told to end so that a job of higher priority gets its turn."""
    ended: TrainerEnded | None = None
    """How its trainer ended, as soon as it has said so."""

    @property
    def has_attached(self) -> bool:
        """Whether its agent was ever connected."""
        return self.pid > 0
