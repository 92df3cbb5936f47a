"""A template: the program of a job before it has any weights of its own, as a file that any weights can be put into.

Written once for a job, by a process of its own (`template_process.py`); each checkpoint's program is then made from it
without torch.  This module says what the two ends hand each other, and knows no torch.

    model.onnx      the program, with one initializer for each tensor of the network that it uses
    template.json   a Template; written last
    failure.json    a TemplateFailure, when there is no template
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.models.version import Parity
from headrace_server.tensors import Signature
from headrace_server.trainers.recipe import Recipe

PROGRAM, TEMPLATE, FAILURE = "model.onnx", "template.json", "failure.json"


class TemplateOrder(BaseModel):
    """What the process is to make a template of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainer: str
    """A name of the catalogue."""
    parameters: dict[str, Any]
    recipe: Recipe
    dataset_path: Path
    dataset_format: DatasetFormat
    folder: Path
    """Where the files go; it exists and is empty."""


class Template(BaseModel):
    """What a template is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signature: Signature
    weights: dict[str, str]
    """The name of each initializer that stands for weights, and the tensor of a checkpoint that belongs there."""
    parity: Parity
    """How far the program is from the network itself, with weights that were put into it."""


class TemplateFailure(BaseModel):
    """Why there is no template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str
    message: str
