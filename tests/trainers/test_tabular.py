"""Tables: what is learnt from them, and what is refused and how."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from headrace_server.datasets.dataset import Column, DatasetFormat, DatasetVersion, Description
from headrace_server.errors import InvalidDataset, InvalidSpec
from headrace_server.tensors import DataType
from headrace_server.trainers.tabular.parameters import TabularParameters, TargetKind
from headrace_server.trainers.tabular.task import TabularTask, build, input_names
from headrace_server.trainers.task import Material

NUM_ROWS = 60


class Table:
    """A table in a file, and the warnings that it led to."""

    def __init__(self, folder: Path, columns: dict[str, Sequence[Any] | pa.Array]) -> None:
        self.path = folder / "table.parquet"
        self.warnings: list[tuple[str, str]] = []
        pq.write_table(pa.table(columns), self.path)

    def build(self, **parameters: Any) -> TabularTask:
        material = Material(
            self.path, DatasetFormat.PARQUET, 0.25, seed=3, warn=lambda *warning: self.warnings.append(warning)
        )
        task = build(TabularParameters.model_validate(parameters), material)
        assert isinstance(task, TabularTask)
        return task


def mixed(**changes: Sequence[Any] | pa.Array) -> dict[str, Sequence[Any] | pa.Array]:
    columns: dict[str, Sequence[Any] | pa.Array] = {
        "size": [float(row % 7) for row in range(NUM_ROWS)],
        "colour": [("red", "green", "blue")[row % 3] for row in range(NUM_ROWS)],
        "new": [row % 2 == 0 for row in range(NUM_ROWS)],
        "kind": [("cat", "dog")[row % 7 > 3] for row in range(NUM_ROWS)],
    }
    return {**columns, **changes}


def test_label_smoothing_takes_certainty_from_the_right_class(tmp_path: Path) -> None:
    table = Table(tmp_path, mixed())
    outputs, targets = torch.tensor([[4.0, -4.0]]), torch.tensor([0])

    sharp = table.build(target="kind").loss(outputs, targets)
    smooth = table.build(target="kind", label_smoothing=0.2).loss(outputs, targets)

    assert smooth.item() == pytest.approx(0.9 * sharp.item() + 0.1 * (sharp.item() + 8.0), rel=1e-5)


def test_label_smoothing_of_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="'size' holds no classes"):
        Table(tmp_path, mixed(size=[row / 7 for row in range(NUM_ROWS)])).build(target="size", label_smoothing=0.1)


def test_a_table_becomes_named_inputs_and_class_scores(tmp_path: Path) -> None:
    task = Table(tmp_path, mixed()).build(target="kind")

    program = task.program(task.make_network().eval())

    assert [(spec.name, spec.data_type, spec.shape) for spec in program.signature.inputs] == [
        ("size", DataType.FP32, (-1,)),
        ("colour", DataType.INT64, (-1,)),
        ("new", DataType.FP32, (-1,)),
    ]
    assert program.signature.inputs[1].class_names == ("", "blue", "green", "red")
    assert program.signature.inputs[0].finite_only
    assert program.signature.is_batchable
    scores, label = program.signature.outputs
    assert (scores.name, scores.shape, scores.class_names) == ("scores", (-1, 2), ("cat", "dog"))
    assert (label.name, label.data_type) == ("label", DataType.INT64)
    answers = program.module(torch.tensor([1.0, 2.0]), torch.tensor([1, 3]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(answers[0].sum(dim=1), torch.ones(2))


def test_the_split_keeps_the_share_of_each_class_and_loses_no_row(tmp_path: Path) -> None:
    kinds = ["rare" if row < 8 else "usual" for row in range(NUM_ROWS)]

    task = Table(tmp_path, mixed(kind=kinds)).build(target="kind")

    assert len(task.training) + len(task.held_out) == NUM_ROWS
    assert int((task.held_out.targets == 0).sum()) == 2
    assert int((task.training.targets == 0).sum()) == 6


@pytest.mark.parametrize(
    ("values", "is_classes"),
    [
        ([row % 20 for row in range(NUM_ROWS)], True),
        ([row % 21 for row in range(NUM_ROWS)], False),
        ([row / 7 for row in range(NUM_ROWS)], False),
        ([row % 2 == 0 for row in range(NUM_ROWS)], True),
        ([str(row % 9) for row in range(NUM_ROWS)], True),
    ],
)
def test_the_task_is_told_by_the_target(tmp_path: Path, values: list[Any], is_classes: bool) -> None:
    task = Table(tmp_path, mixed(kind=values)).build(target="kind")

    assert ("accuracy" in task.measures) == is_classes


def test_class_names_are_sorted_by_size_when_they_are_numbers(tmp_path: Path) -> None:
    task = Table(tmp_path, mixed(kind=[(row % 3) * 5 for row in range(NUM_ROWS)])).build(target="kind")

    assert task.program(task.make_network().eval()).signature.outputs[0].class_names == ("0", "5", "10")


def test_a_regression_answers_in_the_unit_of_the_target(tmp_path: Path) -> None:
    price = [1000.0 + 10 * row for row in range(NUM_ROWS)]
    task = Table(tmp_path, mixed(kind=price)).build(target="kind")
    network = task.make_network().eval()
    program = task.program(network)

    with torch.no_grad():
        (value,) = program.module(*program.inputs)
        measured = task.measure(network(*task.held_out.inputs), task.held_out.targets)

    truth = torch.tensor(sorted(price))[torch.isin(torch.tensor(sorted(price)), value)]  # none is met by chance
    assert len(truth) == 0
    assert 900 < float(value.mean()) < 1700
    assert program.signature.outputs[0].name == "value"
    standardised = network(*task.held_out.inputs).detach() - task.held_out.targets
    deviation = float(np.std(np.array(price)))
    assert float(measured["rmse"]) == pytest.approx(float(standardised.square().mean().sqrt()) * deviation, rel=0.2)
    assert set(measured) == set(task.measures)


def test_missing_numbers_become_the_mean_and_rows_without_a_target_are_left_out(tmp_path: Path) -> None:
    sizes = [None if row == 10 else float("nan") if row == 11 else float(row % 7) for row in range(NUM_ROWS)]
    kinds = [None if row in (0, 1, 2) else ("cat", "dog")[row % 2] for row in range(NUM_ROWS)]
    table = Table(tmp_path, mixed(size=sizes, kind=kinds))

    task = table.build(target="kind")

    assert len(task.training) + len(task.held_out) == NUM_ROWS - 3
    assert [code for code, _ in table.warnings] == ["ROWS_DROPPED", "VALUES_IMPUTED"]
    assert "3 rows" in table.warnings[0][1]
    assert "'size' (2)" in table.warnings[1][1]
    assert all(bool(rows.inputs[0].isfinite().all()) for rows in (task.training, task.held_out))


def test_rare_and_missing_and_empty_and_unknown_texts_are_all_the_same(tmp_path: Path) -> None:
    strange = {5: "once", 6: None, 7: "", 8: "", 9: ""}
    colours = [strange.get(row, "red") for row in range(NUM_ROWS)]
    task = Table(tmp_path, mixed(colour=colours)).build(target="kind")
    program = task.program(task.make_network().eval())

    one = [torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0.0])]
    answers = []
    for code in (0, 2, -1, 10**12):
        one[1] = torch.tensor([code])
        answers.append(program.module(*one)[0])

    assert program.signature.inputs[1].class_names == ("", "red")
    assert all(torch.equal(answers[0], answer) for answer in answers)


def test_a_column_that_never_varies_cannot_disturb_served_answers(tmp_path: Path) -> None:
    table = Table(tmp_path, mixed(size=[0.1] * NUM_ROWS))
    task = table.build(target="kind")
    program = task.program(task.make_network().eval())

    ordinary = program.module(torch.tensor([0.1]), torch.tensor([1]), torch.tensor([1.0]))
    strange = program.module(torch.tensor([9e9]), torch.tensor([1]), torch.tensor([1.0]))

    assert torch.equal(ordinary[0], strange[0])
    assert [code for code, _ in table.warnings] == ["COLUMNS_CONSTANT"]


def test_numbers_that_single_precision_blurs_are_a_warning(tmp_path: Path) -> None:
    table = Table(tmp_path, mixed(size=[1.7e9 + 100 * row for row in range(NUM_ROWS)]))

    table.build(target="kind")

    assert [code for code, _ in table.warnings] == ["PRECISION_LOST"]


@pytest.mark.parametrize(
    ("changes", "parameters", "message"),
    [
        ({"size": [1e300] * NUM_ROWS}, {}, r"column 'size' holds 1e\+300 in row 1"),
        ({"size": [*[0.5] * 40, float("inf"), *[0.5] * 19]}, {}, "column 'size' holds inf in row 41"),
        ({"kind": ["cat"] * NUM_ROWS}, {}, "target 'kind' is 'cat' in every row"),
        ({"kind": [None] * NUM_ROWS}, {}, "the type null"),
        ({"kind": pa.array([None] * NUM_ROWS, pa.string())}, {}, "has no values"),
        ({"kind": [0.5] * NUM_ROWS}, {"task": "classification"}, "holds 0.5 in row 1, which names no class"),
        (
            {"kind": [*["7"] * 30, "x", *["7"] * 29]},
            {"task": "regression"},
            "holds 'x' in row 31, which is not a number",
        ),
        ({"kind": [7.5] * NUM_ROWS}, {}, "the same in every training row"),
        (
            {"size": [*[str(row) for row in range(59)], "n.a."]},
            {},
            r"column 'size' holds numbers, but 'n\.a\.' in row 60",
        ),
        ({"size": [datetime(2026, 1, 1, tzinfo=UTC)] * NUM_ROWS}, {}, "column 'size' has the type timestamp"),
        ({"kind": [*["cat"], *[None] * 59]}, {}, "is 'cat' in every row"),
    ],
)
def test_data_that_cannot_be_learnt_from_are_refused_by_column_and_row(
    tmp_path: Path, changes: dict[str, Any], parameters: dict[str, Any], message: str
) -> None:
    table = Table(tmp_path, mixed(**changes))

    with pytest.raises(InvalidDataset, match=message):
        table.build(target="kind", **parameters)


def test_texts_that_are_hardly_ever_the_same_are_refused(tmp_path: Path) -> None:
    rows = 1500
    table = Table(tmp_path, {"id": [f"id-{row}" for row in range(rows)], "kind": [row % 2 for row in range(rows)]})

    with pytest.raises(InvalidDataset, match=r"'id' is text with 1,1\d\d different values in 1,1\d\d training rows"):
        table.build(target="kind")


def test_a_table_of_texts_alone_can_be_learnt_from(tmp_path: Path) -> None:
    task = Table(tmp_path, mixed()).build(target="kind", features=["colour"])

    program = task.program(task.make_network().eval())

    assert program.module(torch.tensor([1, 2]))[0].shape == (2, 2)


def test_input_names_do_not_clash_with_outputs() -> None:
    assert input_names(["a", "scores", "scores_in"], {"scores", "label"}) == ("a", "scores_in_in", "scores_in")


def version(**types: str) -> DatasetVersion:
    columns = tuple(Column(name=name, type=kind) for name, kind in types.items())
    return DatasetVersion(
        dataset="pets",
        format=DatasetFormat.CSV,
        digest="sha256:" + "0" * 64,
        size_bytes=1,
        description=Description(num_rows=10, columns=columns),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_parameters_that_fit_have_no_violations() -> None:
    parameters = TabularParameters(target="kind", task=TargetKind.CLASSIFICATION, features=("size", "new"))

    assert parameters.violations(version(size="double", new="bool", kind="string", when="date32[day]")) == []


@pytest.mark.parametrize(
    ("parameters", "field", "message"),
    [
        ({"target": "kin", "features": ["size"]}, "target", "'kin' is not one of the columns size, kind, when"),
        ({"target": "when", "features": ["size"]}, "target", "the type date32[day], which cannot be predicted"),
        ({"target": "kind", "features": ["size", "kind"]}, "features", "holds the target 'kind'"),
        ({"target": "kind", "features": ["colour"]}, "features", "'colour' is not one of the columns"),
        ({"target": "kind", "features": ["size", "size"]}, "features", "twice"),
        ({"target": "kind"}, "features", "'when' has the type date32[day]"),
        ({"target": "kind", "task": "regression", "features": ["size"]}, "task", "is text, which cannot be regressed"),
    ],
)
def test_parameters_that_do_not_fit_are_told_by_field(parameters: dict[str, Any], field: str, message: str) -> None:
    dataset = version(size="double", kind="string", when="date32[day]")

    violations = TabularParameters.model_validate(parameters).violations(dataset)

    assert [violation.field for violation in violations] == [field]
    assert message in violations[0].description


def test_a_data_set_of_one_row_is_a_violation() -> None:
    dataset = version(size="double", kind="string")
    small = dataset.model_copy(update={"description": dataset.description.model_copy(update={"num_rows": 1})})

    (violation,) = TabularParameters(target="kind").violations(small)

    assert "fewer than 2 rows" in violation.description
