"""Makes a task of a table: reads and splits it, and knows the loss, the measures and the program.

Numbers that are missing become the mean of the training rows; rows without a target are left out; both with a warning.
The program takes one input for each feature, named like its column: float32 for numbers (booleans are 0 and 1), and for
categories the int64 position of the text in the input's `class_names`, where 0 is anything that is not listed.
Callers of the server may send the text itself.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from headrace_server.datasets.reading import read_columns
from headrace_server.errors import InvalidDataset, InvalidSpec, Violation
from headrace_server.tensors import DataType, Signature, TensorSpec
from headrace_server.trainers.family import Parameters
from headrace_server.trainers.measures import CLASSIFICATION, REGRESSION, measure_classes, measure_numbers
from headrace_server.trainers.split import hold_out
from headrace_server.trainers.tabular.columns import (
    Target,
    column_names,
    encode_categories,
    kind_of,
    list_categories,
    read_numbers,
    read_target,
    read_texts,
    refuse_broken_numbers,
)
from headrace_server.trainers.tabular.network import Scale, TabularNetwork, TabularProgram
from headrace_server.trainers.tabular.parameters import ColumnKind, TabularParameters
from headrace_server.trainers.task import Direction, Material, Program, Rows, Task

_COMPARED_ROWS = 256


def build(parameters: Parameters, material: Material) -> Task:
    """Read the table.  Raises InvalidDataset, which names the column, and the row where it can."""
    assert isinstance(parameters, TabularParameters)
    names = parameters.feature_names(column_names(material.path, material.format))
    columns = read_columns(material.path, material.format, [*names, parameters.target])
    target = read_target(parameters.target, columns[parameters.target], parameters.task)
    num_missing = int((~target.is_present).sum())
    if num_missing:
        material.warn("ROWS_DROPPED", f"{num_missing} rows have no {parameters.target!r} and are left out")
    classes = target.values.astype(np.int64) if target.class_names else None
    training, held_out = hold_out(len(target.values), material.holdout_fraction, material.seed, classes)
    features = Features({name: columns[name] for name in names}, target.is_present, training, material)
    return TabularTask(parameters, features, target, training, held_out)


class Features:
    """The feature columns of all usable rows, as tensors, with what training rows say about them.

    `is_usable` chooses rows of the columns, and `training` rows of those.
    """

    def __init__(
        self,
        columns: Mapping[str, pa.ChunkedArray],
        is_usable: NDArray[np.bool_],
        training: NDArray[np.int64],
        material: Material,
    ) -> None:
        self.names = tuple(columns)
        self.is_number = tuple(kind_of(name, column) is ColumnKind.NUMBER for name, column in columns.items())
        self.categories: dict[str, tuple[str, ...]] = {}
        numbers: list[NDArray[np.float32]] = []
        codes: list[NDArray[np.int64]] = []
        num_imputed: dict[str, int] = {}
        for (name, column), is_number in zip(columns.items(), self.is_number, strict=True):
            if is_number:
                values, num_imputed[name] = _impute(read_numbers(name, column)[is_usable], training)
                numbers.append(values.astype(np.float32))
            else:
                texts = read_texts(column)
                refuse_broken_numbers(name, texts)
                texts = texts[is_usable]
                self.categories[name] = list_categories(name, texts[training])
                codes.append(encode_categories(texts, self.categories[name]))
        num_rows = int(is_usable.sum())
        self.numbers = torch.from_numpy(_side_by_side(numbers, num_rows, np.float32))
        self.codes = torch.from_numpy(_side_by_side(codes, num_rows, np.int64))
        self.scale = Scale.of(self.numbers[training])
        self._warn(material, num_imputed)

    def _warn(self, material: Material, num_imputed: Mapping[str, int]) -> None:
        imputed = {name: count for name, count in num_imputed.items() if count}
        if imputed:
            listed = _listed([f"{name!r} ({count})" for name, count in imputed.items()])
            material.warn("VALUES_IMPUTED", f"missing numbers were replaced by the mean of their column: {listed}")
        names = [name for name, is_number in zip(self.names, self.is_number, strict=True) if is_number]
        constant = [name for name, deviation in zip(names, self.scale.deviation.tolist(), strict=True) if not deviation]
        if constant:
            material.warn("COLUMNS_CONSTANT", f"columns that never vary teach nothing: {_listed(constant)}")
        coarse = self.scale.mean.abs() > 1e5 * self.scale.deviation
        imprecise = [name for name, is_coarse in zip(names, coarse.tolist(), strict=True) if is_coarse]
        imprecise = [name for name in imprecise if name not in constant]
        if imprecise:
            material.warn(
                "PRECISION_LOST",
                "numbers vary little for their size, and single precision blurs the difference; subtract a constant: "
                f"{_listed(imprecise)}",
            )


class TabularTask(Task):
    """One training over one table."""

    is_static = True

    def __init__(
        self,
        parameters: TabularParameters,
        features: Features,
        target: Target,
        training: NDArray[np.int64],
        held_out: NDArray[np.int64],
    ) -> None:
        self._parameters, self._features = parameters, features
        self._class_names = target.class_names
        self.measures: Mapping[str, Direction] = CLASSIFICATION if target.class_names else REGRESSION
        if target.class_names:
            self._target_scale = None
            targets = torch.from_numpy(target.values.astype(np.int64))
        else:
            if parameters.label_smoothing:
                raise InvalidSpec([Violation("tabular.label_smoothing", f"{parameters.target!r} holds no classes")])
            raw = torch.from_numpy(target.values.astype(np.float32))[:, None]
            self._target_scale = Scale.of(raw[training])
            if not self._target_scale.deviation.item():
                raise InvalidDataset(f"the target {parameters.target!r} is the same in every training row")
            targets = self._target_scale.standardise(raw)
        numbers = features.scale.standardise(features.numbers)
        self.training = Rows((numbers[training], features.codes[training]), targets[training])
        self.held_out = Rows((numbers[held_out], features.codes[held_out]), targets[held_out])
        self._compared = held_out[:_COMPARED_ROWS]

    def make_network(self) -> nn.Module:
        """A multi-layer perceptron of the widths that were asked for."""
        return TabularNetwork(
            num_numbers=self._features.numbers.shape[1],
            num_categories=[len(categories) for categories in self._features.categories.values()],
            hidden_widths=self._parameters.hidden_widths,
            dropout=self._parameters.dropout,
            num_outputs=len(self._class_names) or 1,
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error of the standardised target."""
        if self._class_names:
            return functional.cross_entropy(outputs, targets, label_smoothing=self._parameters.label_smoothing)
        return functional.mse_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """For numbers in the target's own unit, except the loss."""
        if self._target_scale is None:
            return measure_classes(outputs, targets)
        return measure_numbers(outputs, targets, unit=self._target_scale.deviation)

    def program(self, network: nn.Module) -> Program:
        """One named input a column; scores and label, or a value."""
        assert isinstance(network, TabularNetwork)
        features = self._features
        module = TabularProgram(network, features.is_number, features.scale, self._target_scale)
        targets = self.held_out.targets[: len(self._compared)]
        if self._target_scale is not None:
            targets = self._target_scale.restore(targets)[:, 0]
        return Program(module.eval(), self._signature(), self._raw_inputs(self._compared), targets)

    def _signature(self) -> Signature:
        outputs: tuple[TensorSpec, ...]
        if self._class_names:
            outputs = (
                TensorSpec(
                    name="scores",
                    data_type=DataType.FP32,
                    shape=(-1, len(self._class_names)),
                    class_names=self._class_names,
                ),
                TensorSpec(name="label", data_type=DataType.INT64, shape=(-1,)),
            )
        else:
            outputs = (TensorSpec(name="value", data_type=DataType.FP32, shape=(-1,)),)
        inputs = []
        names = input_names(self._features.names, taken={output.name for output in outputs})
        for column, name, is_number in zip(self._features.names, names, self._features.is_number, strict=True):
            if is_number:
                spec = TensorSpec(name=name, data_type=DataType.FP32, shape=(-1,), finite_only=True)
            else:
                categories = self._features.categories[column]
                spec = TensorSpec(name=name, data_type=DataType.INT64, shape=(-1,), class_names=categories)
            inputs.append(spec)
        return Signature(inputs=tuple(inputs), outputs=outputs)

    def _raw_inputs(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        numbers, codes = iter(self._features.numbers[rows].T), iter(self._features.codes[rows].T)
        return tuple(next(numbers if is_number else codes).contiguous() for is_number in self._features.is_number)


def input_names(columns: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    """Input names for columns: the column's own, with "_in" behind those that an output has."""
    names: list[str] = []
    for column in columns:
        name = column
        while name in taken or name in names or (name != column and name in columns):
            name += "_in"
        names.append(name)
    return tuple(names)


def _impute(values: NDArray[np.float64], training: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
    is_missing = np.isnan(values)
    known = values[training][~is_missing[training]]
    return np.where(is_missing, known.mean() if len(known) else 0.0, values), int(is_missing.sum())


def _side_by_side(
    columns: Sequence[NDArray[np.generic]], num_rows: int, dtype: type[np.generic]
) -> NDArray[np.generic]:
    return np.stack(columns, axis=1) if columns else np.zeros((num_rows, 0), dtype)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
