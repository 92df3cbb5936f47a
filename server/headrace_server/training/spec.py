"""What a job was asked to do, complete and frozen: the form in which it is stored and handed to its worker."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from headrace_server.trainers.recipe import Recipe


class StartPoint(BaseModel):
    """Weights to begin with, chosen when the job was admitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of a model's version, or of a job with "@latest" or "@best"."""
    key: str
    """Where the weights lie in the store, as safetensors."""
    digest: str


class TrainingSpec(BaseModel):
    """Everything that decides what a training does, with every default filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    """`datasets/{dataset}/versions/{version}`: frozen when the job is admitted."""
    dataset_digest: str
    trainer: str
    parameters: dict[str, Any]
    """As the family's own Parameters model dumps them."""
    model: str
    """`models/{model}`: what the result becomes a version of."""
    recipe: Recipe
    priority: int = Field(0, ge=-100, le=100)
    start_from: StartPoint | None = None
    num_ranks: int = Field(1, ge=1, le=64)
    """Processes that train together."""
    is_preemptible: bool = False
    """Whether a waiting job of higher priority may take its place; it then waits again, and goes on where it was."""
    max_restarts: int = Field(3, ge=0, le=100)
