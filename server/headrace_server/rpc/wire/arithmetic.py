"""How the steps of a training are computed (micro-batches, compilation, ranks…), between messages and recipes."""

from collections.abc import Mapping
from typing import Any

from headrace.training.v1 import training_spec_pb2 as spec_pb
from headrace_server.trainers.recipe import Compilation, Graphs, OnNonFinite, Recipe, Strategy

_COMPILATIONS = {
    spec_pb.TrainingSpec.COMPILATION_UNSPECIFIED: Compilation.AUTO.value,
    spec_pb.TrainingSpec.COMPILATION_NEVER: Compilation.NEVER.value,
    spec_pb.TrainingSpec.COMPILATION_ALWAYS: Compilation.ALWAYS.value,
}
_GRAPHS = {
    spec_pb.TrainingSpec.GRAPHS_UNSPECIFIED: Graphs.AUTO.value,
    spec_pb.TrainingSpec.GRAPHS_NEVER: Graphs.NEVER.value,
    spec_pb.TrainingSpec.GRAPHS_ALWAYS: Graphs.ALWAYS.value,
}
_STRATEGIES = {
    spec_pb.TrainingSpec.STRATEGY_DATA_PARALLEL: Strategy.DATA_PARALLEL.value,
    spec_pb.TrainingSpec.STRATEGY_FULLY_SHARDED: Strategy.FULLY_SHARDED.value,
}
_ACTIONS = {
    spec_pb.Numerics.ACTION_STOP: OnNonFinite.STOP.value,
    spec_pb.Numerics.ACTION_SKIP: OnNonFinite.SKIP.value,
    spec_pb.Numerics.ACTION_LOWER_RATE: OnNonFinite.LOWER_RATE.value,
}


def read_arithmetic(spec: spec_pb.TrainingSpec, recipe: dict[str, Any]) -> None:
    """Put what a specification says into a draft of a recipe."""
    recipe |= present(spec, "micro_batches", "max_gradient_norm", "channels_last", "synchronize_batch_norm")
    recipe |= {flag: True for flag in ("deterministic", "split_to_fit") if getattr(spec, flag)}
    if spec.HasField("moving_average"):
        recipe["moving_average"] = present(spec.moving_average, "decay")
    numerics = present(spec.numerics, "rate_factor", "max_skipped_in_a_row")
    if spec.numerics.on_non_finite != spec_pb.Numerics.ACTION_UNSPECIFIED:
        numerics["on_non_finite"] = _ACTIONS.get(spec.numerics.on_non_finite, str(spec.numerics.on_non_finite))
    if numerics:
        recipe["numerics"] = numerics
    if spec.compilation != spec_pb.TrainingSpec.COMPILATION_UNSPECIFIED:
        recipe["compilation"] = _COMPILATIONS.get(spec.compilation, str(spec.compilation))
    if spec.graphs != spec_pb.TrainingSpec.GRAPHS_UNSPECIFIED:
        recipe["graphs"] = _GRAPHS.get(spec.graphs, str(spec.graphs))
    if spec.strategy != spec_pb.TrainingSpec.STRATEGY_UNSPECIFIED:
        recipe["strategy"] = _STRATEGIES.get(spec.strategy, str(spec.strategy))


def set_arithmetic(message: spec_pb.TrainingSpec, recipe: Recipe) -> None:
    """Put what a recipe says into a specification."""
    message.micro_batches = recipe.micro_batches
    if recipe.max_gradient_norm is not None:
        message.max_gradient_norm = recipe.max_gradient_norm
    if recipe.moving_average is not None:
        message.moving_average.decay = recipe.moving_average.decay
    message.deterministic, message.split_to_fit = recipe.deterministic, recipe.split_to_fit
    message.numerics.on_non_finite = key_of(_ACTIONS, recipe.numerics.on_non_finite.value)
    message.numerics.rate_factor = recipe.numerics.rate_factor
    message.numerics.max_skipped_in_a_row = recipe.numerics.max_skipped_in_a_row
    message.compilation = key_of(_COMPILATIONS, recipe.compilation.value)
    if recipe.channels_last is not None:
        message.channels_last = recipe.channels_last
    message.synchronize_batch_norm = recipe.synchronize_batch_norm
    message.graphs = key_of(_GRAPHS, recipe.graphs.value)
    message.strategy = key_of(_STRATEGIES, recipe.strategy.value)


def present(message: Any, *fields: str) -> dict[str, Any]:
    """Those of the optional fields that are set and that this message has."""
    known = message.DESCRIPTOR.fields_by_name
    return {field: getattr(message, field) for field in fields if field in known and message.HasField(field)}


def key_of(table: Mapping[Any, str], value: str) -> Any:
    """The number of a choice in the contract."""
    return next(key for key, known in table.items() if known == value)
