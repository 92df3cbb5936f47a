"""What can be asked of a training over a table, and what of it does not fit a data set.  Knows no torch."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from headrace_server.datasets.dataset import Column, DatasetFormat, DatasetVersion
from headrace_server.errors import Violation
from headrace_server.trainers.family import Family, Parameters


class TargetKind(StrEnum):
    """What the target column means.

    AUTO: text, booleans, and integers of at most 20 distinct values that each stand for two rows or more on average,
    are classes; other numbers are regressed.
    """

    AUTO = "auto"
    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class ColumnKind(StrEnum):
    """How a column is learnt from."""

    NUMBER = "number"
    """Integers, floating-point numbers, decimals, and booleans as 0 and 1."""
    CATEGORY = "category"
    """Text."""


def column_kind(arrow_type: str) -> ColumnKind | None:
    """How a column of this Arrow type is learnt from; None when it cannot be."""
    if arrow_type.startswith("dictionary<values="):
        return column_kind(arrow_type.removeprefix("dictionary<values=").partition(",")[0])
    if arrow_type in ("string", "large_string", "string_view"):
        return ColumnKind.CATEGORY
    if arrow_type in ("bool", "halffloat", "float", "double") or arrow_type.startswith(("int", "uint", "decimal")):
        return ColumnKind.NUMBER
    return None


class TabularParameters(Parameters):
    """A multi-layer perceptron over the columns of a table, with embeddings for categories."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    target: str = Field(min_length=1, description="The column to predict.")
    task: TargetKind = Field(TargetKind.AUTO, description="What the target means.")
    features: tuple[str, ...] = Field(
        (), description="The columns to learn from; every column but the target when empty."
    )
    hidden_widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65_536)], ...], BeforeValidator(lambda widths: widths or (128, 128))
    ] = Field((128, 128), max_length=64, description="The width of each hidden layer; [128, 128] when empty.")
    dropout: float = Field(0.1, ge=0, lt=1, description="The share of activations dropped in training.")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The share of certainty that training gives to all classes alike.",
    )

    def violations(self, dataset: DatasetVersion) -> list[Violation]:
        """What does not fit this table, with fields relative to the parameters; empty when all fits."""
        columns = {column.name: column for column in dataset.description.columns}
        found = [*self._target_violations(columns), *self._feature_violations(columns)]
        if dataset.description.num_rows < 2:
            found.append(Violation("target", f"{dataset.name} has fewer than 2 rows: one to train, one to hold out"))
        return found

    def _target_violations(self, columns: Mapping[str, Column]) -> Iterator[Violation]:
        if self.target not in columns:
            yield Violation("target", f"{self.target!r} is not one of the columns {_listed(columns)}")
            return
        target = columns[self.target]
        kind = column_kind(target.type)
        if kind is None:
            yield Violation("target", f"{self.target!r} has the type {target.type}, which cannot be predicted")
        elif self.task is TargetKind.REGRESSION and kind is ColumnKind.CATEGORY:
            yield Violation("task", f"{self.target!r} is text, which cannot be regressed; ask for classification")
        if self.task is TargetKind.REGRESSION and self.label_smoothing:
            yield Violation("label_smoothing", "is for classes; a number is regressed here")

    def _feature_violations(self, columns: Mapping[str, Column]) -> Iterator[Violation]:
        if self.target in self.features:
            yield Violation("features", f"holds the target {self.target!r}")
        if len(set(self.features)) < len(self.features):
            yield Violation("features", "names a column twice")
        for name in self.features:
            if name not in columns:
                yield Violation("features", f"{name!r} is not one of the columns {_listed(columns)}")
        for name in self.feature_names(tuple(columns)):
            if name in columns and column_kind(columns[name].type) is None:
                yield Violation(
                    "features",
                    f"{name!r} has the type {columns[name].type}, which cannot be learnt from;"
                    " list the columns to learn from without it",
                )
        if columns and not self.feature_names(tuple(columns)):
            yield Violation("features", f"there is no column beside the target {self.target!r} to learn from")

    def feature_names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """The columns to learn from, in order."""
        return self.features or tuple(name for name in columns if name != self.target)


def _listed(columns: Mapping[str, Column]) -> str:
    names = list(columns)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


TABULAR = Family(
    name="tabular",
    title="A network over columns of numbers and categories",
    parameters=TabularParameters,
    formats=(DatasetFormat.CSV, DatasetFormat.PARQUET),
    metrics=("accuracy", "loss", "rmse", "mae", "r2"),
    code="headrace_server.trainers.tabular.task:build",
)
