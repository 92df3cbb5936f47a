"""Products in INT8 with a scale for each row: how exact, what is left as it is, and what they are refused for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from headrace_server.inference.backends.torch_quantizing import CannotQuantize, quantize
from headrace_server.inference.backends.torch_rounding import LARGEST, round_weights
from headrace_server.inference.engine import Engine
from headrace_server.inference.improving import PlanReport
from headrace_server.inference.plans.difference import why_intolerable
from headrace_server.inference.plans.opening import PlanFiles, open_plan
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.trying import Bench, try_plan
from headrace_server.models.calibration import draw_rows
from headrace_server.models.registry import Registry
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import ArtifactFormat, ModelVersion
from headrace_server.names import ModelName
from headrace_server.precision import Precision, PrecisionPolicy, Tolerances
from headrace_server.storage.local import LocalBlobStore
from tests.doubles.until import until
from tests.inference.plans.conftest import MakeEngine
from tests.inference.plans.programs import signature, torch_sources

TORCH_FP32 = Plan(runtime=Runtime.TORCH, precision=Precision.FP32)
INT8 = Plan(runtime=Runtime.TORCH, precision=Precision.INT8, form=Form.COMPILED)
WIDTH = 64


class Block(nn.Module):
    """A layer of a transformer over four tokens, which all come in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 4, WIDTH)
        heads = (
            layer(tokens).view(-1, 4, 2, WIDTH // 2).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(-1, 4, WIDTH)
        tokens = self.first_norm(tokens + self.out(mixed))
        tokens = self.second_norm(tokens + self.narrow(functional.gelu(self.wide(tokens))))
        flat: Tensor = tokens.flatten(1)
        return flat


def exported(module: nn.Module, folder: Path, width: int) -> ExportedProgram:
    return torch.export.load(str(torch_sources(module, folder, width)[ArtifactFormat.TORCH_EXPORT]))


def scripted(*reasons: str) -> Callable[[Sequence[Tensor], Sequence[Tensor]], str]:
    """Says these reasons, one after the other, and then nothing."""
    left = list(reasons)
    return lambda wanted, found: left.pop(0) if left else ""


def num_products(module: torch.fx.GraphModule) -> int:
    return sum("dequantize_per_channel" in str(node.target) for node in module.graph.nodes)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """What the block is tried with, its 32-bit program tried already."""
    folder = tmp_path_factory.mktemp("block")
    of = signature(4 * WIDTH, 4 * WIDTH)
    bench = Bench(
        sources=torch_sources(Block(), folder, 4 * WIDTH), signature=of, rows=draw_rows(of), sizes=(1, 8),
        thread_counts=(1, 2), folder=folder, seconds_per_figure=0.002, seconds_per_compilation=300, base={},
        references={},
    )  # fmt: skip
    assert not try_plan(TORCH_FP32, bench).problem
    return bench


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_transformer_in_int8_is_within_the_tolerances_for_any_number_of_rows(tried: Bench) -> None:
    trial = try_plan(INT8, tried)

    assert trial.problem == ""
    assert why_intolerable(trial.worst_difference(), None, Tolerances()) == ""
    assert trial.worst_difference().max_absolute > 0
    assert trial.prepared is not None
    assert trial.prepared.name == "torch-int8-compiled.pt2"
    source = tried.sources[ArtifactFormat.TORCH_EXPORT]
    session = open_plan(INT8, PlanFiles(source, tried.folder / trial.prepared.name), tried.signature, num_threads=1)
    assert session.precision is Precision.INT8
    rows = np.random.default_rng(1).normal(size=(5, 4 * WIDTH)).astype(np.float32)
    wanted = torch.export.load(str(source)).module()(torch.from_numpy(rows)).detach().numpy()
    found = session.run({"x": rows})["output"]
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    session.close()


@pytest.mark.timeout(300)
def test_a_tighter_tolerance_refuses_it_before_anything_is_compiled(tried: Bench) -> None:
    strict = Bench(**{
        **{name: getattr(tried, name) for name in Bench.__slots__},
        "tolerances": Tolerances(max_relative_error=1e-7, min_cosine=1),
    })  # fmt: skip

    trial = try_plan(INT8, strict)

    assert "products left as they are, the relative error is" in trial.problem
    assert "tolerated is 7.5e-08" in trial.problem


def test_a_damaged_file_is_not_opened(tried: Bench) -> None:
    damaged = tried.folder / "damaged.pt2"
    damaged.write_bytes(b"PK not a library")

    with pytest.raises(Exception, match="zip"):
        open_plan(INT8, PlanFiles(tried.sources[ArtifactFormat.TORCH_EXPORT], damaged), tried.signature, num_threads=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_version_comes_to_it_and_again_when_its_file_was_damaged(
    make_engine: MakeEngine, registry: Registry, store: LocalBlobStore, tmp_path: Path
) -> None:
    program = torch_sources(Block(), tmp_path, 4 * WIDTH)[ArtifactFormat.TORCH_EXPORT]
    version = await registry.serve_path("m", program)
    policy = PrecisionPolicy(precision=Precision.INT8)
    await registry.change_serving("m", lambda _: ServingOptions(precision=policy))
    rows = {"x": np.random.default_rng(1).normal(size=(2, 4 * WIDTH)).astype(np.float32)}

    engine = make_engine("", can_compile=True)
    before = (await engine.predict(ModelName("m"), rows)).provenance.precision
    report = await settled(engine, version)
    after = (await engine.predict(ModelName("m"), rows)).provenance.precision
    await engine.close()
    for key in await store.list("plans/"):
        await store.put_bytes(key, b"not a library")
    again = make_engine("", can_compile=True)
    await again.load(ModelName("m"))
    mended = await settled(again, version)

    assert before is Precision.FP32
    assert (report.running, after) == (("torch-int8-compiled",), Precision.INT8), report.decision
    assert mended.running == ("torch-int8-compiled",)


async def settled(engine: Engine, version: ModelVersion) -> PlanReport:
    """Wait until nothing is under way for the version."""
    improving = engine.improving
    assert improving is not None
    await until(lambda: version.key not in improving._under_way, 300)
    return await improving.report(version)


def test_layers_that_take_the_same_input_are_one_product(tmp_path: Path) -> None:
    program = exported(Block(), tmp_path, 4 * WIDTH)

    made = quantize(program, [torch.randn(16, 4 * WIDTH)], scripted(), 60)

    assert num_products(made) == 4  # query, key and value; out; wide; narrow
    x = torch.randn(3, 4 * WIDTH)
    assert functional.cosine_similarity(made(x), program.module()(x)).min() > 0.999


class Chain(nn.Module):
    """Five products; the third gets a row in which one number is far from all others, and only now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x + 300 * (x == x.amax(-1, keepdim=True)) if number == 2 else torch.tanh(x))
        return x


def test_what_loses_most_is_left_as_it_is_and_no_more_than_it_takes(tmp_path: Path) -> None:
    program = exported(Chain(), tmp_path, WIDTH)

    made = quantize(program, [torch.randn(64, WIDTH)], scripted("the cosine is too small"), 60)

    assert num_products(made) == 4
    left = [node for node in made.graph.nodes if node.op == "get_attr" and "int8_2_numbers" in str(node.target)]
    assert not left, "the third product is the one that is left"


def test_what_is_never_good_enough_is_refused_with_the_last_reason(tmp_path: Path) -> None:
    program = exported(Chain(), tmp_path, WIDTH)

    with pytest.raises(CannotQuantize, match="most of its 5 products left as they are, never"):
        quantize(program, [torch.randn(64, WIDTH)], lambda wanted, found: "never", 60)


def test_looking_for_what_loses_most_ends_with_its_time(tmp_path: Path) -> None:
    program = exported(Chain(), tmp_path, WIDTH)

    with pytest.raises(CannotQuantize, match="with 0 of 5 products left as they are, never"):
        quantize(program, [torch.randn(64, WIDTH)], lambda wanted, found: "never", 0)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, WIDTH)),
        nn.Sequential(
            nn.Unflatten(1, (WIDTH, 1)), nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.Flatten(), nn.Linear(WIDTH, WIDTH)
        ),
    ],
    ids=["small layers", "convolutions"],
)
def test_what_is_mostly_something_else_is_refused(tmp_path: Path, module: nn.Module) -> None:
    with pytest.raises(CannotQuantize, match="no linear layers of at least 64 by 64"):
        quantize(exported(module, tmp_path, WIDTH), [torch.randn(4, WIDTH)], scripted(), 60)


def test_rows_that_are_all_the_same_or_not_finite_answer_as_before(tmp_path: Path) -> None:
    program = exported(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)), tmp_path, WIDTH)
    rows = torch.randn(16, WIDTH)
    rows[0] = float("inf")

    made = quantize(program, [rows], scripted(), 60)

    odd = torch.stack([torch.zeros(WIDTH), torch.full((WIDTH,), 3.0), torch.full((WIDTH,), float("nan"))])
    with torch.no_grad():
        wanted, found = program.module()(odd), made(odd)
    assert torch.allclose(found[:2], wanted[:2], atol=0.02 * float(wanted[:2].abs().max()))
    assert found[2].isnan().all()


def test_gelu_is_shortened_to_what_bytes_can_tell(tmp_path: Path) -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    module = nn.Sequential(layer, nn.GELU())
    program = exported(module, tmp_path, WIDTH)

    made = quantize(program, [torch.randn(16, WIDTH)], scripted(), 60)

    assert not [node for node in made.graph.nodes if "gelu" in str(node.target)]
    zeros = torch.zeros(4, WIDTH)  # which bytes stand for exactly
    assert torch.allclose(made(zeros), functional.gelu(layer(zeros)), atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), outputs=st.integers(1, 40), inputs=st.integers(1, 200), rows=st.integers(1, 64))
def test_rounded_weights_are_bytes_that_stand_for_the_weights(seed: int, outputs: int, inputs: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(outputs, inputs, generator=generator)
    x = torch.randn(rows, inputs, generator=generator) * torch.rand(inputs, generator=generator)

    made = round_weights(weights, x)

    assert made.numbers.dtype is torch.int8
    assert int(made.numbers.min()) >= -LARGEST
    assert torch.isfinite(made.scales).all()
    assert (made.factors > 0).all()
    near = made.numbers * made.scales[:, None] * made.factors
    assert (x @ near.T - x @ weights.T).norm() <= 0.05 * (x @ weights.T).norm() + 1e-3


def test_rounding_for_real_rows_loses_less_than_rounding_to_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(WIDTH, WIDTH, generator=generator)
    x = torch.randn(512, 8, generator=generator) @ mixed[:8] + 0.01 * torch.randn(512, WIDTH, generator=generator)
    weights = torch.randn(WIDTH, WIDTH, generator=generator)

    made = round_weights(weights, x)

    near = made.numbers * made.scales[:, None] * made.factors
    scaled = weights / made.factors
    nearest = (scaled / made.scales[:, None]).round() * made.scales[:, None] * made.factors
    assert (x @ (near - weights).T).norm() < 0.5 * (x @ (nearest - weights).T).norm()
