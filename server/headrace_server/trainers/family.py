"""What a family of trainers is to the rest of the house: a name, parameters, and where its code lies.  Knows no torch.

The server shows and checks families; only the trainer process loads their code.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pydantic import BaseModel

from headrace_server.datasets.dataset import DatasetFormat, DatasetVersion
from headrace_server.errors import Violation


class Parameters(BaseModel, ABC):
    """The parameters of one family: a frozen pydantic model with every default filled in and every range stated."""

    @abstractmethod
    def violations(self, dataset: DatasetVersion) -> list[Violation]:
        """What does not fit this data set, with fields relative to the parameters; empty when all fits."""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of training."""

    name: str
    """The name it is asked for by: "tabular"."""
    title: str
    """One line for people."""
    parameters: type[Parameters]
    formats: tuple[DatasetFormat, ...]
    """The formats of data sets that it reads."""
    metrics: tuple[str, ...]
    """The measures that may decide which checkpoint is best."""
    code: str
    """`package.module:function`, which the trainer process calls; see `trainers/task.py` for what it must return."""
    is_plugin: bool = False
