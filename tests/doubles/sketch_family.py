"""A family of trainers that trains nothing, with parameters that can be wrong in every way."""

from pydantic import ConfigDict, Field

from headrace_server.datasets.dataset import DatasetFormat, DatasetVersion
from headrace_server.errors import Violation
from headrace_server.trainers.family import Family, Parameters


class SketchParameters(Parameters):
    """A column, and some widths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    widths: tuple[int, ...] = Field((8, 8))
    dropout: float = Field(0.1, ge=0, lt=1)

    def violations(self, dataset: DatasetVersion) -> list[Violation]:
        """The target must be a column."""
        columns = [column.name for column in dataset.description.columns]
        if self.target in columns:
            return []
        return [Violation("target", f"{self.target!r} is not one of {', '.join(columns)}")]


SKETCH = Family(
    name="sketch",
    title="A sketch of a trainer.",
    parameters=SketchParameters,
    formats=(DatasetFormat.CSV,),
    metrics=("loss", "accuracy"),
    code="nowhere:nothing",
)
