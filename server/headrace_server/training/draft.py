"""What a caller asks for, before anybody has checked it: the request as the door hands it to admission.

Knows nothing of the wire; `field_paths` lets admission blame fields by the names that the caller used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SpecDraft:
    """A specification as it was sent: only what was set, nothing checked, no default filled in."""

    dataset: str = ""
    """`datasets/{dataset}`, or one version of it; empty when it was not set."""
    trainer: str = ""
    """The name of a family; empty when none was chosen."""
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    """`models/{model}`; empty when it was not set."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Nested as `trainers/recipe.py`; unions carry their `kind`."""
    priority: int = 0
    is_preemptible: bool = False
    num_ranks: int | None = None
    start_from: str = ""
    """`models/…` or `trainingJobs/…`; empty: from random weights."""
    max_restarts: int | None = None
    field_paths: Mapping[str, str] = field(default_factory=dict)
    """From a path in this draft ("recipe.length.count", "parameters", "model") to the contract's path of that field
    ("spec.epochs", "spec.tabular", "spec.model").  What follows the longest known prefix is kept."""

    def field_path(self, path: str) -> str:
        """The contract's path of a field of this draft; `spec.` and the path itself where none was given.

        A prefix ends before a dot or a bracket: "parameters" covers "parameters.target" and "parameters[0]".
        """
        end = len(path)
        while end > 0:
            if (known := self.field_paths.get(path[:end])) is not None:
                return known + path[end:]
            end = max(path.rfind(".", 0, end), path.rfind("[", 0, end))
        return f"spec.{path}"


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A call of StartTraining."""

    draft: SpecDraft
    request_id: str = ""
    """Makes the call idempotent; empty when it is not to be."""
    job_id: str = ""
    """Empty: the server chooses."""
    labels: dict[str, str] = field(default_factory=dict)
    validate_only: bool = False
    body_digest: str = ""
    """A hash of the request without its request id; at most 64 characters."""
