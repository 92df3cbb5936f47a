"""Several models answer as one, in one call's time, and say what each of them did."""

import asyncio
import threading
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, strategies as st
from onnx import TensorProto

from headrace_server.errors import (
    Draining,
    InvalidSpec,
    InvalidTensor,
    ModelFailed,
    ModelNotFound,
    NoPermit,
    RequestIdReused,
    Unsupported,
    of_member,
)
from headrace_server.inference.engine import Readiness
from headrace_server.inference.ensembles import mean, vote
from headrace_server.models.ensemble import (
    Chain,
    ChainInput,
    ChainOutput,
    Ensemble,
    Mean,
    Member,
    MemberOutput,
    Vote,
)
from headrace_server.models.registry import Registry
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.tensors import Array, Tensors
from tests.doubles.onnx_models import identity, lookup, scale
from tests.doubles.scripted_backend import ScriptedBackend
from tests.inference.conftest import MakeEngine, Publish

CROWD = ModelName("crowd")


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value, -value] for value in values], np.float32)}


def averaged(**models: str) -> Ensemble:
    members = tuple(Member(name=name, model=model) for name, model in models.items())
    return Ensemble(members=members, combination=Mean())


def wire(member: str, source: str | MemberOutput) -> ChainInput:
    return ChainInput(member=member, input="x", source=source)


async def test_a_mean_weighs_its_members_and_says_what_each_did(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    versions = [await publish(scale(factor), model) for factor, model in ((2, "m"), (5, "n"))]
    members = (Member(name="two", model="models/m"), Member(name="five", model="models/n", weight=2))
    await registry.register_ensemble("crowd", Ensemble(members=members, combination=Mean()), request_id="")

    prediction = await make_engine().predict(CROWD, rows(1, 2))

    np.testing.assert_allclose(prediction.outputs["y"].astype(np.float32), np.array([[4, -4], [8, -8]]))
    assert str(prediction.version.name) == "models/crowd/versions/1"
    assert [(member.name, member.version) for member in prediction.members] == list(
        zip(("two", "five"), versions, strict=True)
    )
    digests = [version.artifacts[0].digest for version in versions]
    assert [member.provenance.artifact_digest for member in prediction.members] == digests
    assert (prediction.provenance.backend, prediction.provenance.precision) == ("ensemble", Precision.FP32)
    assert prediction.timing.compute_seconds >= max(member.timing.compute_seconds for member in prediction.members)


async def test_a_vote_takes_what_most_say(make_engine: MakeEngine, publish: Publish, registry: Registry) -> None:
    await publish(identity(TensorProto.INT64, ["batch"]), "m")
    members = tuple(Member(name=name, model="models/m") for name in "abc")
    version = await registry.register_ensemble("crowd", Ensemble(members=members, combination=Vote()), request_id="")

    prediction = await make_engine().predict(CROWD, {"x": np.array([3, 1], np.int64)})

    assert prediction.outputs["y"].tolist() == [3, 1]
    assert version.signature.outputs[0].name == "y"


async def test_a_chain_feeds_its_members_in_the_order_they_need(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(scale(2), "m")
    await publish(scale(10), "n")
    y = {name: MemberOutput(member=name, output="y") for name in ("first", "second")}
    ensemble = Ensemble(
        members=(Member(name="second", model="models/n"), Member(name="first", model="models/m")),
        combination=Chain(
            inputs=(wire("second", y["first"]), wire("first", "rows")),
            outputs=(ChainOutput(name="last", source=y["second"]), ChainOutput(name="middle", source=y["first"])),
        ),
    )
    await registry.register_ensemble("crowd", ensemble, request_id="")
    engine = make_engine()

    both = await engine.predict(CROWD, {"rows": rows(1)["x"]})
    one = await engine.predict(CROWD, {"rows": rows(1)["x"]}, output_names=["last"])

    assert {name: array.tolist() for name, array in both.outputs.items()} == {"last": [[20, -20]], "middle": [[2, -2]]}
    assert list(one.outputs) == ["last"]


async def test_members_run_at_the_same_time(make_engine: MakeEngine, publish: Publish, registry: Registry) -> None:
    backend, meeting = ScriptedBackend(), threading.Barrier(2, timeout=20)

    def meet(inputs: Tensors) -> Tensors:
        if len(inputs["x"]) == 3:  # not a warm-up
            meeting.wait()  # fails unless the other member is there too
        return {"y": inputs["x"]}

    backend.act = meet
    for model in "mn":
        await publish(scale(2), model)
    await registry.register_ensemble("crowd", averaged(a="models/m", b="models/n"), request_id="")

    prediction = await make_engine([backend]).predict(CROWD, rows(1, 2, 3))

    assert len(prediction.outputs["y"]) == 3


async def test_a_member_that_fails_is_named_and_its_error_loses_nothing(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(lookup(4), "short")
    await publish(lookup(9), "long")
    await registry.register_ensemble("crowd", averaged(a="models/long", b="models/short"), request_id="")
    engine = make_engine()
    assert (await engine.predict(CROWD, {"x": np.array([3], np.int64)})).outputs["y"].tolist() == [30]

    with pytest.raises(ModelFailed, match="member 'b': models/short/versions/1 failed") as caught:
        await engine.predict(CROWD, {"x": np.array([7], np.int64)})

    assert caught.value.metadata == {"model": "models/short/versions/1", "member": "b"}


async def test_a_followed_member_moves_with_its_alias_and_a_frozen_one_stays(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(scale(2), "m")
    await registry.register_ensemble("crowd", averaged(a="models/m", b="models/m/versions/1"), request_id="")
    engine = make_engine()
    assert (await engine.predict(CROWD, rows(1))).outputs["y"][0, 0] == 2

    await publish(scale(4), "m")

    moved = await engine.predict(CROWD, rows(1))
    assert moved.outputs["y"][0, 0] == 3
    assert [str(member.version.name) for member in moved.members] == ["models/m/versions/2", "models/m/versions/1"]


async def test_a_followed_member_that_no_longer_fits_is_told_as_its_own_fault(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(scale(2, width=2), "m")
    await registry.register_ensemble("crowd", averaged(a="models/m"), request_id="")
    await publish(scale(2, width=3), "m")

    with pytest.raises(ModelFailed, match="models/m does not fit the ensemble") as caught:
        await make_engine().predict(CROWD, rows(1))

    assert caught.value.metadata["member"] == "a"


async def test_the_callers_own_mistake_stays_his(make_engine: MakeEngine, publish: Publish, registry: Registry) -> None:
    await publish(scale(2), "m")
    await registry.register_ensemble("crowd", averaged(a="models/m"), request_id="")
    engine = make_engine()

    with pytest.raises(InvalidTensor, match="must be"):
        await engine.predict(CROWD, {"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(InvalidTensor, match="'z' is not one of y"):
        await engine.predict(CROWD, rows(1), output_names=["z"])


async def test_ensembles_in_each_other_end_somewhere_also_when_an_alias_makes_a_circle(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(scale(2), "m")
    await registry.register_ensemble("a", averaged(x="models/m"), request_id="")
    await registry.register_ensemble("b", averaged(x="models/a"), request_id="")
    engine = make_engine()
    nested = await engine.predict(ModelName("b"), rows(1))
    assert nested.members[0].members[0].provenance.backend == "onnxruntime"

    await registry.register_ensemble("a", averaged(x="models/b"), request_id="")  # a → b → a …

    with pytest.raises(ModelFailed, match="more than 4 deep") as caught:
        await engine.predict(ModelName("b"), rows(1))
    assert caught.value.metadata["member"] == "x/x/x/x"
    with pytest.raises(ModelFailed, match="more than 4 deep"):
        await engine.status(ModelName("b"))
    with pytest.raises(InvalidSpec, match="4 with this one are allowed"):
        await registry.register_ensemble("c", averaged(x="models/b"), request_id="")


async def test_registration_refuses_members_that_are_not_there_or_may_come_to_be_itself(
    publish: Publish, registry: Registry
) -> None:
    await publish(scale(2), "m")

    with pytest.raises(InvalidSpec) as caught:
        await registry.register_ensemble(
            "crowd", averaged(a="models/nobody", b="models/crowd@best", c="nonsense", d="models/m"), request_id=""
        )

    assert [violation.field for violation in caught.value.violations] == [
        "ensemble.members[0].model", "ensemble.members[1].model", "ensemble.members[2].model",
    ]  # fmt: skip
    with pytest.raises(ModelNotFound):
        await registry.resolve(CROWD)


async def test_the_same_request_registers_one_version(publish: Publish, registry: Registry) -> None:
    await publish(scale(2), "m")

    first = await registry.register_ensemble("crowd", averaged(a="models/m"), request_id="r")
    again = await registry.register_ensemble("crowd", averaged(a="models/m"), request_id="r")

    assert again == first == await registry.resolve(CROWD)
    with pytest.raises(RequestIdReused):
        await registry.register_ensemble("crowd", averaged(b="models/m"), request_id="r")


async def test_status_is_that_of_the_worst_member_and_loading_loads_them_all(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    for model in "mn":
        await publish(scale(2), model)
    version = await registry.register_ensemble("crowd", averaged(a="models/m", b="models/n"), request_id="")
    engine = make_engine()
    await engine.load(ModelName("m"))
    assert (await engine.status(CROWD)).readiness is Readiness.UNLOADED

    loaded = await engine.load(CROWD)

    status = await engine.status(CROWD)
    assert (loaded.version, loaded.backend) == (version, "ensemble")
    assert (status.readiness, status.version) == (Readiness.READY, version)
    with pytest.raises(Unsupported, match="unload its members"):
        await engine.unload(CROWD)


async def test_a_caller_who_leaves_takes_his_rows_out_of_every_member(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    backend = ScriptedBackend()
    for model in "mn":
        await publish(scale(2), model)
    await registry.register_ensemble("crowd", averaged(a="models/m", b="models/n"), request_id="")
    engine = make_engine([backend])
    await engine.load(CROWD)

    asking = asyncio.ensure_future(engine.predict(CROWD, rows(1)))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    async with asyncio.timeout(10):
        await engine.drain()  # nothing of it is left
    with pytest.raises(Draining):
        await engine.predict(CROWD, rows(1))


def test_an_error_told_for_a_member_is_still_itself() -> None:
    told = of_member(of_member(NoPermit("m", 5, 4, timedelta(seconds=3)), "inner"), "outer")

    assert isinstance(told, NoPermit)
    assert told.retry_after == timedelta(seconds=3)
    assert told.metadata == {"model": "m", "waiting_rows": "5", "limit": "4", "member": "outer/inner"}
    assert str(told).startswith("member 'outer': member 'inner': 5 rows already wait")


ANSWERS = st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6)


@given(ANSWERS)
def test_a_vote_is_what_counting_finds(answers: list[list[int]]) -> None:
    arrays = [np.array(answer) for answer in answers]

    chosen = vote(arrays, [1.0] * len(arrays)).tolist()

    for place, winner in enumerate(chosen):
        column = [answer[place] for answer in answers]
        most = max(map(column.count, column))
        assert winner == next(value for value in column if column.count(value) == most)


def test_a_heavier_vote_wins_and_text_can_be_voted_on() -> None:
    texts = [np.array([text], object) for text in ("cat", "dog", "dog")]

    assert vote(texts, [1, 1, 1]).tolist() == ["dog"]
    assert vote(texts, [3, 1, 1]).tolist() == ["cat"]


@given(st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=8))
def test_a_mean_of_half_precision_is_summed_wider_and_keeps_its_type(values: list[float]) -> None:
    result = mean([np.array([value], np.float16) for value in values], [1.0] * len(values))

    assert result.dtype == np.float16
    np.testing.assert_allclose(result.astype(np.float64), np.array([sum(values) / len(values)]), rtol=1e-3, atol=1e-3)
