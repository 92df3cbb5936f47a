"""Serving options of models, between the contract's messages and the registry's values, both ways."""

from collections.abc import Callable

from pydantic import ValidationError

from headrace.models.v1 import model_service_pb2, serving_options_pb2 as pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import InvalidSpec, Violation
from headrace_server.models.serving import MOST_LANES, LaneSharing, ResponseCaching, ServingOptions
from headrace_server.precision import Precision, PrecisionPolicy, Tolerances
from headrace_server.rpc.wire.events import duration_from_proto, duration_to_proto

_TO_PROTO = {precision: tensor_pb2.Precision.Value(f"PRECISION_{precision.name}") for precision in Precision}
_FROM_PROTO = {number: precision for precision, number in _TO_PROTO.items()}
_SHARING_TO_PROTO = {
    LaneSharing.AUTO: pb.ServingOptions.LANE_SHARING_UNSPECIFIED,
    LaneSharing.OWN: pb.ServingOptions.LANE_SHARING_OWN,
    LaneSharing.SHARED: pb.ServingOptions.LANE_SHARING_SHARED,
}
_SHARING_FROM_PROTO = {number: sharing for sharing, number in _SHARING_TO_PROTO.items()}
_WHOLE = "serving"


def precision_to_proto(precision: Precision | None) -> tensor_pb2.Precision.ValueType:
    """A number format; None is unspecified."""
    return _TO_PROTO[precision] if precision is not None else tensor_pb2.PRECISION_UNSPECIFIED


def policy_to_proto(policy: PrecisionPolicy) -> pb.PrecisionPolicy:
    """A policy with all its tolerances."""
    return pb.PrecisionPolicy(
        precision=precision_to_proto(policy.precision), tolerances=pb.Tolerances(**policy.tolerances.model_dump())
    )


def serving_to_proto(serving: ServingOptions) -> pb.ServingOptions:
    """All options, with the defaults that stand for what was never set."""
    caching = serving.cache
    return pb.ServingOptions(
        cache=pb.ResponseCache(
            is_enabled=caching.is_enabled,
            max_age=None if caching.max_age_seconds is None else duration_to_proto(caching.max_age_seconds),
        ),
        precision=policy_to_proto(serving.precision),
        is_pinned=serving.is_pinned,
        num_lanes=serving.num_lanes or 0,
        lane_sharing=_SHARING_TO_PROTO[serving.lane_sharing],
    )


def serving_change(request: model_service_pb2.UpdateModelRequest) -> Callable[[ServingOptions], ServingOptions]:
    """What an UpdateModelRequest changes.  Raises InvalidSpec with everything that is wrong with it."""
    fields = _asked(request)
    given = request.model.serving
    update: dict[str, object] = {}
    if "cache" in fields:
        update["cache"] = _caching_from_proto(given.cache)
    if "precision" in fields:
        update["precision"] = _policy_from_proto(given.precision)
    if "is_pinned" in fields:
        update["is_pinned"] = given.is_pinned
    if "num_lanes" in fields:
        update["num_lanes"] = _num_lanes_from_proto(given.num_lanes)
    if "lane_sharing" in fields:
        update["lane_sharing"] = _lane_sharing_from_proto(given.lane_sharing)
    return lambda serving: serving.model_copy(update=update)


def _asked(request: model_service_pb2.UpdateModelRequest) -> set[str]:
    """The fields of ServingOptions that the mask names."""
    known = set(ServingOptions.model_fields)
    asked: set[str] = set()
    wrong = []
    for path in request.update_mask.paths or [_WHOLE]:
        top, _, field = path.partition(".")
        if top == _WHOLE and not field:
            asked |= known
        elif top == _WHOLE and field in known:
            asked.add(field)
        else:
            paths = ", ".join([_WHOLE, *(f"{_WHOLE}.{name}" for name in sorted(known))])
            wrong.append(Violation("update_mask", f"{path!r} cannot be changed; {paths} can"))
    if wrong:
        raise InvalidSpec(wrong)
    return asked


def _caching_from_proto(cache: pb.ResponseCache) -> ResponseCaching:
    max_age = duration_from_proto(cache.max_age) if cache.HasField("max_age") else None
    if max_age is not None and not max_age > 0:
        raise InvalidSpec([Violation("model.serving.cache.max_age", "must be greater than 0")])
    return ResponseCaching(is_enabled=cache.is_enabled, max_age_seconds=max_age)


def _num_lanes_from_proto(num_lanes: int) -> int | None:
    if not 0 <= num_lanes <= MOST_LANES:
        raise InvalidSpec([Violation("model.serving.num_lanes", f"is {num_lanes}, must be 0 to {MOST_LANES}")])
    return num_lanes or None


def _lane_sharing_from_proto(number: pb.ServingOptions.LaneSharing.ValueType) -> LaneSharing:
    sharing = _SHARING_FROM_PROTO.get(number)
    if sharing is None:
        raise InvalidSpec([Violation("model.serving.lane_sharing", f"{number} is not one that this server knows")])
    return sharing


def _policy_from_proto(policy: pb.PrecisionPolicy) -> PrecisionPolicy:
    wrong: list[Violation] = []
    field = "model.serving.precision"
    if policy.precision and policy.precision not in _FROM_PROTO:
        wrong.append(Violation(f"{field}.precision", f"{policy.precision} is not a precision that this server knows"))
    given = {descriptor.name: value for descriptor, value in policy.tolerances.ListFields()}
    tolerances = Tolerances()
    try:
        tolerances = Tolerances.model_validate(given)
    except ValidationError as error:
        wrong += [
            Violation(f"{field}.tolerances.{problem['loc'][0]}", f"is {problem['input']:g}: {problem['msg']}")
            for problem in error.errors()
        ]
    if wrong:
        raise InvalidSpec(wrong)
    return PrecisionPolicy(precision=_FROM_PROTO.get(policy.precision), tolerances=tolerances)
