"""What a lane decides on a GPU, on a card without one: buckets, recorded graphs, staging, conversion."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.inference.backends.torch_export import order_of
from headrace_server.inference.backends.torch_graphs import (
    LARGEST_BUCKET,
    MOST_GRAPHS,
    MOST_SHAPES,
    GraphSession,
    flat_call,
)
from headrace_server.precision import Precision
from headrace_server.tensors import Array, DataType, Signature, TensorSpec
from tests.doubles.host_card import HostCard, broken, out_of_memory
from tests.doubles.torch_programs import Scores, save
from tests.inference.plans.programs import BATCH, signature, torch_sources


class Opened:
    """A session with the cards that it has opened."""

    def __init__(
        self, module: nn.Module, folder: Path, precision: Precision = Precision.FP32, *, keeps_norms: bool = False
    ) -> None:
        (path,) = torch_sources(module, folder, 4).values()
        self.cards: list[HostCard] = []
        of = signature(4, 3)
        call = flat_call(torch.export.load(str(path)), precision, keeps_norms=keeps_norms)
        self.session = GraphSession(call, order_of(path, of), self._open_card, precision, is_batchable=True)

    def _open_card(self) -> HostCard:
        self.cards.append(HostCard())
        return self.cards[-1]

    @property
    def card(self) -> HostCard:
        return self.cards[0]

    def run(self, rows: int, start: float = 0.0) -> Array:
        return self.session.run({"x": numbers(rows, start)})["output"]


def numbers(rows: int, start: float = 0.0) -> Array:
    return (np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + np.float32(start)) / 8


@pytest.fixture
def layer() -> nn.Module:
    return nn.Linear(4, 3)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16])
def test_every_size_of_batch_has_its_own_rows_recorded_or_not(
    layer: nn.Module, tmp_path: Path, precision: Precision
) -> None:
    opened = Opened(layer, tmp_path, precision)
    (path,) = tmp_path.glob("*.pt2")
    exact = torch.export.load(str(path)).module()
    tolerance = 1e-5 if precision is Precision.FP32 else 0.2

    for rows in (1, 3, 4, 5, 33, 3, 1, 5, 40, 4):
        expected = exact(torch.from_numpy(numbers(rows, rows))).detach().numpy()
        assert np.allclose(opened.run(rows, rows), expected, atol=tolerance)


def test_a_shape_is_recorded_when_it_comes_for_the_second_time_and_replayed_from_then_on(
    layer: nn.Module, tmp_path: Path
) -> None:
    opened = Opened(layer, tmp_path)

    recorded = []
    for rows in (3, 4, 3, 3):  # all of one bucket
        opened.run(rows)
        recorded.append((opened.card.num_recorded, opened.card.num_replayed))

    assert recorded == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_rows_are_converted_to_what_the_program_takes_on_the_way_to_its_graph(layer: nn.Module, tmp_path: Path) -> None:
    opened = Opened(layer, tmp_path, Precision.BF16)

    opened.run(3)
    opened.run(3)

    (graph,) = opened.session._graphs.values()
    assert graph.inputs[0].dtype is torch.bfloat16
    assert set(opened.card.gathered) == {(3, DataType.FP32, DataType.BF16)}
    assert graph.inputs[0][:3].float().numpy() == pytest.approx(numbers(3), rel=0.01)


@pytest.mark.parametrize("keeps_norms", [False, True])
def test_norms_may_stay_in_32_bits_although_rows_come_in_16(tmp_path: Path, *, keeps_norms: bool) -> None:
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.Softmax(-1))
    opened = Opened(module, tmp_path, Precision.FP16, keeps_norms=keeps_norms)

    answers = [opened.run(3), opened.run(3)]

    expected = module(torch.from_numpy(numbers(3))).detach().numpy()
    assert answers[0].dtype == np.float32
    assert np.allclose(answers[0], expected, atol=0.01)
    assert np.allclose(answers[1], expected, atol=0.01)


def test_a_recording_sees_real_rows_everywhere(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def call(flat: list[Tensor]) -> list[Tensor]:
        seen.append(flat[0].clone())
        return [flat[0][:, :3]]

    order = (list(signature(4, 3).inputs), list(signature(4, 3).outputs))
    session = GraphSession(call, order, HostCard, Precision.FP32, is_batchable=True)

    session.run({"x": numbers(3, 1)})
    session.run({"x": numbers(3, 1)})

    assert np.array_equal(seen[1].numpy(), numbers(3, 1)[[0, 1, 2, 0]])


def test_all_inputs_of_a_batch_go_over_in_one_copy_and_keep_their_types(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Scores()
    path = save(
        module, (torch.randn(2, 4), torch.ones(2, 5, dtype=torch.bool)), tmp_path,
        dynamic_shapes=({0: BATCH}, {0: BATCH}),
    )  # fmt: skip
    of = Signature(
        inputs=(
            TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 4)),
            TensorSpec(name="mask", data_type=DataType.BOOL, shape=(-1, 5)),
        ),
        outputs=(
            TensorSpec(name="scores", data_type=DataType.FP32, shape=(-1, 3)),
            TensorSpec(name="best", data_type=DataType.INT64, shape=(-1,)),
        ),
    )
    card = HostCard()
    call = flat_call(torch.export.load(str(path)), Precision.FP32, keeps_norms=False)
    session = GraphSession(call, order_of(path, of), lambda: card, Precision.FP32, is_batchable=True)
    mask = np.array([[True] * 5, [False] * 5, [True, False] * 2 + [True]])

    for _ in range(2):
        answer = session.run({"x": numbers(3), "mask": mask})

    expected = module(torch.from_numpy(numbers(3)), torch.from_numpy(mask))
    assert np.allclose(answer["scores"], expected["scores"].detach().numpy(), atol=1e-5)
    assert np.array_equal(answer["best"], expected["best"].numpy())
    assert len(card.uploaded) == 1  # the first run had no graph
    assert {(source, target) for _, source, target in card.gathered} == {
        (DataType.FP32, DataType.FP32), (DataType.BOOL, DataType.BOOL),
    }  # fmt: skip


def test_graphs_and_the_shapes_that_came_once_are_bounded(tmp_path: Path) -> None:
    def call(flat: list[Tensor]) -> list[Tensor]:
        return [flat[0].sum(-1)]

    order = (list(signature(-1, 3).inputs), list(signature(-1, 3).outputs))
    session = GraphSession(call, order, HostCard, Precision.FP32, is_batchable=True)

    for length in range(1, 2 * MOST_SHAPES):
        session.run({"x": np.ones((1, length), np.float32)})
    assert len(session._seen) <= MOST_SHAPES
    for length in range(1, 2 * MOST_GRAPHS):
        for _ in range(2):
            assert session.run({"x": np.ones((1, length), np.float32)})["output"].tolist() == [length]
    assert len(session._graphs) == MOST_GRAPHS


def test_what_is_larger_than_the_largest_bucket_runs_without_a_graph(layer: nn.Module, tmp_path: Path) -> None:
    opened = Opened(layer, tmp_path)

    for _ in range(2):
        assert len(opened.run(LARGEST_BUCKET + 1)) == LARGEST_BUCKET + 1

    assert opened.card.num_recorded == 0


def test_a_lane_of_its_own_has_a_stream_and_graphs_of_its_own_and_the_same_weights(
    layer: nn.Module, tmp_path: Path
) -> None:
    opened = Opened(layer, tmp_path)
    twin = opened.session.twin()

    mine = [opened.run(2), opened.run(2)]
    theirs = twin.run({"x": numbers(2)})["output"]
    opened.session.close()

    assert len(opened.cards) == 2
    assert np.array_equal(mine[1], theirs)
    assert np.array_equal(twin.run({"x": numbers(2)})["output"], theirs)
    assert [card.num_recorded for card in opened.cards] == [1, 1]


def test_memory_that_ends_takes_graphs_and_staging_with_it_and_the_next_batch_is_answered(
    layer: nn.Module, tmp_path: Path
) -> None:
    opened = Opened(layer, tmp_path)
    before = [opened.run(2), opened.run(2)][1]
    opened.card.failure = out_of_memory()

    with pytest.raises(DeviceOutOfMemory):
        opened.run(2)
    given_back = (opened.session._graphs, opened.session._staging, opened.card.num_forgotten)

    assert given_back == ({}, None, 1)
    assert [opened.run(2).tolist(), opened.run(2).tolist()] == [before.tolist(), before.tolist()]


def test_a_lost_device_is_not_taken_for_anything_else(layer: nn.Module, tmp_path: Path) -> None:
    opened = Opened(layer, tmp_path)
    opened.card.failure = broken()

    with pytest.raises(DeviceBroken, match="illegal memory access"):
        opened.run(2)


def test_staging_memory_grows_with_the_largest_batch_and_serves_smaller_ones(layer: nn.Module, tmp_path: Path) -> None:
    opened = Opened(layer, tmp_path)

    sizes = []
    for rows in (2, 2, 600, 600, 2):
        opened.run(rows)
        sizes.append(0 if opened.session._staging is None else opened.session._staging.nbytes)

    assert sizes == [0, 256, 256, 16384, 16384]
