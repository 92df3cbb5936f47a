"""Serving options on the wire."""

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from headrace.models.v1 import model_pb2, model_service_pb2, serving_options_pb2 as pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import InvalidSpec
from headrace_server.models.serving import LaneSharing, ServingOptions
from headrace_server.precision import Precision, PrecisionPolicy, Tolerances
from headrace_server.rpc.wire.serving import serving_change, serving_to_proto

BEFORE = ServingOptions(
    precision=PrecisionPolicy(precision=Precision.BF16, tolerances=Tolerances(min_cosine=0.5)), is_pinned=True
)


def request(serving: pb.ServingOptions, *paths: str) -> model_service_pb2.UpdateModelRequest:
    model = model_pb2.Model(name="models/m", serving=serving)
    return model_service_pb2.UpdateModelRequest(model=model, update_mask=FieldMask(paths=paths))


def test_what_the_server_says_can_be_sent_back() -> None:
    assert serving_change(request(serving_to_proto(BEFORE), "serving"))(ServingOptions()) == BEFORE


def test_only_what_the_mask_names_is_changed() -> None:
    given = pb.ServingOptions(is_pinned=False)

    assert serving_change(request(given, "serving.is_pinned"))(BEFORE).precision == BEFORE.precision
    assert serving_change(request(given, "serving.precision"))(BEFORE) == ServingOptions(is_pinned=True)
    assert serving_change(request(given))(BEFORE) == ServingOptions()


def test_tolerances_that_are_absent_have_their_defaults_and_zero_is_a_value() -> None:
    policy = pb.PrecisionPolicy(
        precision=tensor_pb2.PRECISION_INT8, tolerances=pb.Tolerances(max_relative_error=0, min_cosine=0.9)
    )

    changed = serving_change(request(pb.ServingOptions(precision=policy), "serving.precision"))(ServingOptions())

    assert changed.precision.precision is Precision.INT8
    assert changed.precision.tolerances == Tolerances(max_relative_error=0, min_cosine=0.9)


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        (pb.PrecisionPolicy(precision=99), {"precision"}),  # type: ignore[arg-type]
        (pb.PrecisionPolicy(tolerances=pb.Tolerances(min_cosine=2)), {"tolerances.min_cosine"}),
        (
            pb.PrecisionPolicy(tolerances=pb.Tolerances(max_relative_error=-1, min_agreement=float("nan"))),
            {"tolerances.max_relative_error", "tolerances.min_agreement"},
        ),
    ],
)
def test_every_fault_of_a_policy_is_named(policy: pb.PrecisionPolicy, fields: set[str]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        serving_change(request(pb.ServingOptions(precision=policy), "serving.precision"))

    assert {violation.field for violation in caught.value.violations} == {
        f"model.serving.precision.{field}" for field in fields
    }


def test_a_mask_that_names_what_cannot_be_changed_says_what_can() -> None:
    with pytest.raises(InvalidSpec, match=r"'name' cannot be changed; serving, .*serving\.precision"):
        serving_change(request(pb.ServingOptions(), "name", "serving.is_pinned"))


def test_a_number_of_lanes_is_set_and_taken_back() -> None:
    two = serving_change(request(pb.ServingOptions(num_lanes=2), "serving.num_lanes"))(BEFORE)
    none = serving_change(request(pb.ServingOptions(), "serving.num_lanes"))(two)

    assert (two.num_lanes, none.num_lanes) == (2, None)
    assert serving_to_proto(two).num_lanes == 2


@pytest.mark.parametrize("sharing", LaneSharing)
def test_whose_threads_run_a_model_goes_both_ways(sharing: LaneSharing) -> None:
    message = serving_to_proto(ServingOptions(lane_sharing=sharing))

    assert serving_change(request(message, "serving.lane_sharing"))(BEFORE).lane_sharing is sharing


def test_threads_that_are_nobodys_are_refused() -> None:
    with pytest.raises(InvalidSpec) as caught:
        serving_change(request(pb.ServingOptions(lane_sharing=99), "serving.lane_sharing"))  # type: ignore[arg-type]

    assert [violation.field for violation in caught.value.violations] == ["model.serving.lane_sharing"]


@pytest.mark.parametrize("num_lanes", [-1, 65])
def test_a_number_of_lanes_that_cannot_be_is_refused(num_lanes: int) -> None:
    with pytest.raises(InvalidSpec) as caught:
        serving_change(request(pb.ServingOptions(num_lanes=num_lanes), "serving.num_lanes"))

    assert [violation.field for violation in caught.value.violations] == ["model.serving.num_lanes"]
