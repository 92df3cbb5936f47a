from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, strategies as st

from headrace.training.v1 import training_job_pb2 as job_pb, training_service_pb2 as pb, training_spec_pb2 as spec_pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import InvalidSpec
from headrace_server.rpc.wire.training import (
    draft_from_proto,
    job_to_proto,
    spec_to_proto,
    start_request_from_proto,
    trainer_to_proto,
)
from headrace_server.trainers.catalogue import Families
from headrace_server.trainers.recipe import Recipe
from headrace_server.training.events import CheckpointSaved
from headrace_server.training.job import Failure
from headrace_server.training.spec import TrainingSpec
from headrace_server.training.states import JobState
from tests.doubles.job_desk import NOON, a_job, a_step

FAMILIES = Families(plugins=())
SHARES = st.floats(0, 0.99)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def messages(kind: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda **values: kind(**{k: v for k, v in values.items() if v is not None}), **fields)


OPTIMIZERS = messages(spec_pb.AdamW, learning_rate=maybe(st.floats(1e-6, 10)), weight_decay=maybe(SHARES)).map(
    lambda adamw: spec_pb.Optimizer(adamw=adamw)
) | messages(
    spec_pb.Sgd, learning_rate=maybe(st.floats(1e-6, 10)), momentum=maybe(SHARES), weight_decay=maybe(SHARES)
).map(lambda sgd: spec_pb.Optimizer(sgd=sgd))
SCHEDULES = st.one_of(
    messages(spec_pb.ConstantSchedule, warmup_fraction=maybe(SHARES)).map(lambda one: spec_pb.Schedule(constant=one)),
    messages(spec_pb.CosineSchedule, warmup_fraction=maybe(SHARES), final_fraction=maybe(SHARES)).map(
        lambda one: spec_pb.Schedule(cosine=one)
    ),
    messages(spec_pb.LinearSchedule, warmup_fraction=maybe(SHARES), final_fraction=maybe(SHARES)).map(
        lambda one: spec_pb.Schedule(linear=one)
    ),
    messages(spec_pb.StepDecaySchedule, factor=maybe(st.floats(0.01, 0.99)), num_drops=maybe(st.integers(1, 9))).map(
        lambda one: spec_pb.Schedule(step_decay=one)
    ),
)
TABULAR = messages(
    spec_pb.TabularTrainer,
    target=st.text("abc", min_size=1),
    task=st.sampled_from([0, 1, 2]),
    features=st.lists(st.text("def", min_size=1), max_size=3),
    hidden_widths=st.lists(st.integers(1, 65_536), max_size=3),
    dropout=maybe(SHARES),
    label_smoothing=maybe(SHARES),
)
AUGMENTATIONS = messages(
    spec_pb.Augmentation,
    flip=st.booleans(),
    shift_pixels=maybe(st.integers(0, 32)),
    cutout_pixels=maybe(st.integers(0, 256)),
)
IMAGES = messages(
    spec_pb.ImageClassificationTrainer,
    image_size=maybe(st.integers(8, 512)),
    width=maybe(st.integers(4, 512)),
    blocks_per_stage=maybe(st.integers(1, 8)),
    augmentation=maybe(AUGMENTATIONS),
    images=st.sampled_from(["", "pictures"]),
    labels=st.sampled_from(["", "names"]),
    label_smoothing=maybe(SHARES),
)
LENGTHS: st.SearchStrategy[dict[str, int]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"epochs": st.integers(1, 1_000_000)}),
    st.fixed_dictionaries({"steps": st.integers(1, 1_000_000_000)}),
)
TRAINERS = st.fixed_dictionaries({"tabular": TABULAR}) | st.fixed_dictionaries({"image_classification": IMAGES})
SPECS = st.builds(
    lambda length, trainer, **values: spec_pb.TrainingSpec(
        dataset="datasets/d",
        model="models/m",
        **length,
        **trainer,
        **{key: value for key, value in values.items() if value is not None},
    ),
    length=LENGTHS,
    trainer=TRAINERS,
    batch_size=maybe(st.integers(1, 65_536)),
    optimizer=maybe(OPTIMIZERS),
    schedule=maybe(SCHEDULES),
    precision=st.sampled_from([1, 2, 3, 4]),
    seed=maybe(st.integers(0, 2**63 - 1)),
    evaluation=maybe(
        messages(
            spec_pb.Evaluation,
            holdout_fraction=maybe(st.floats(0.01, 0.9)),
            every_epochs=maybe(st.integers(1, 9)),
            metric=st.sampled_from(["", "loss"]),
        )
    ),
    early_stopping=maybe(messages(spec_pb.EarlyStopping, patience=st.integers(1, 9), min_delta=st.floats(0, 1))),
    checkpoints=maybe(
        messages(spec_pb.CheckpointPolicy, period=maybe(st.integers(1, 9999).map(lambda s: Duration(seconds=s))))
    ),
    resources=maybe(
        messages(
            spec_pb.Resources,
            device=st.sampled_from([0, 1, 2]),
            priority=st.integers(-100, 100),
            cpu_threads=maybe(st.integers(1, 1024)),
        )
    ),
    max_restarts=maybe(st.integers(0, 100)),
    micro_batches=st.just(1),
    max_gradient_norm=maybe(st.floats(1e-3, 100)),
    moving_average=maybe(messages(spec_pb.MovingAverage, decay=maybe(st.floats(0.01, 0.9999)))),
    deterministic=st.booleans(),
    split_to_fit=st.booleans(),
    numerics=maybe(
        messages(
            spec_pb.Numerics,
            on_non_finite=st.sampled_from([1, 2, 3]),
            rate_factor=maybe(st.floats(0.01, 0.99)),
            max_skipped_in_a_row=maybe(st.integers(1, 99)),
        )
    ),
    compilation=st.sampled_from([0, 1, 2]),
    channels_last=maybe(st.booleans()),
    strategy=st.sampled_from([1, 2]),
)


def admitted(spec: spec_pb.TrainingSpec) -> TrainingSpec:
    """What admission makes of a specification that is right: defaults filled in by the house's own types."""
    draft = draft_from_proto(spec)
    family = FAMILIES.get(draft.trainer)
    assert family is not None
    restarts = {} if draft.max_restarts is None else {"max_restarts": draft.max_restarts}
    return TrainingSpec(
        dataset=draft.dataset,
        dataset_digest="sha256:0",
        trainer=draft.trainer,
        parameters=family.parameters.model_validate(draft.parameters).model_dump(mode="json"),
        model=draft.model,
        recipe=Recipe.model_validate({"seed": 1, **draft.recipe}),
        priority=draft.priority,
        **restarts,
    )


def contains(whole: Any, part: Any) -> bool:
    """Whether every field that is set in `part` has the same value in `whole`."""
    for field, value in part.ListFields():
        have = getattr(whole, field.name)
        if field.type == field.TYPE_MESSAGE and not field.is_repeated:
            if not contains(have, value):
                return False
        elif have != value:
            return False
    return True


@given(SPECS)
def test_a_job_shows_what_was_asked_for_with_every_default(spec: spec_pb.TrainingSpec) -> None:
    shown = spec_to_proto(admitted(spec))

    assert contains(shown, spec)
    assert shown.WhichOneof("length") is not None
    assert shown.optimizer.WhichOneof("kind") is not None
    assert shown.HasField("seed")
    assert shown.checkpoints.HasField("period")


@given(SPECS)
def test_what_a_job_shows_can_be_asked_for_again(spec: spec_pb.TrainingSpec) -> None:
    once = admitted(spec)

    assert admitted(spec_to_proto(once)) == once


def test_only_what_was_set_is_in_the_draft() -> None:
    draft = draft_from_proto(spec_pb.TrainingSpec())

    assert (draft.dataset, draft.trainer, draft.parameters, draft.model) == ("", "", {}, "")
    assert draft.recipe == {}
    assert draft.max_restarts is None


@pytest.mark.parametrize(
    ("spec", "path", "field"),
    [
        (spec_pb.TrainingSpec(epochs=0), "recipe.length.epochs.count", "spec.epochs"),
        (spec_pb.TrainingSpec(steps=0), "recipe.length.count", "spec.steps"),
        (
            spec_pb.TrainingSpec(optimizer=spec_pb.Optimizer(sgd=spec_pb.Sgd())),
            "recipe.optimizer.sgd.momentum",
            "spec.optimizer.sgd.momentum",
        ),
        (
            spec_pb.TrainingSpec(optimizer=spec_pb.Optimizer(adamw=spec_pb.AdamW())),
            "recipe.optimizer.learning_rate",
            "spec.optimizer.adamw.learning_rate",
        ),
        (spec_pb.TrainingSpec(), "recipe.checkpoints.period_seconds", "spec.checkpoints.period"),
        (spec_pb.TrainingSpec(), "recipe.evaluation.metric", "spec.evaluation.metric"),
        (spec_pb.TrainingSpec(), "recipe.batch_size", "spec.batch_size"),
        (spec_pb.TrainingSpec(), "recipe.cpu_threads", "spec.resources.cpu_threads"),
        (spec_pb.TrainingSpec(tabular=spec_pb.TabularTrainer()), "parameters.target", "spec.tabular.target"),
        (
            spec_pb.TrainingSpec(plugin=spec_pb.PluginTrainer(name="x")),
            "parameters.depth[0]",
            "spec.plugin.parameters.depth[0]",
        ),
        (spec_pb.TrainingSpec(plugin=spec_pb.PluginTrainer(name="x")), "trainer", "spec.plugin.name"),
    ],
)
def test_a_field_is_blamed_by_the_name_that_the_caller_used(spec: spec_pb.TrainingSpec, path: str, field: str) -> None:
    assert draft_from_proto(spec).field_path(path) == field


def test_enum_numbers_from_the_future_are_left_for_admission_to_refuse() -> None:
    spec = spec_pb.TrainingSpec(
        tabular=spec_pb.TabularTrainer(task=9),  # type: ignore[arg-type]
        precision=9,  # type: ignore[arg-type]
        resources=spec_pb.Resources(device=9),  # type: ignore[arg-type]
    )

    draft = draft_from_proto(spec)

    assert (draft.parameters["task"], draft.recipe["precision"], draft.recipe["device"]) == ("9", "9", "9")


def test_whole_numbers_of_a_plug_in_are_integers_again() -> None:
    parameters = Struct()
    parameters.update({"depth": 3, "rate": 0.5, "huge": 1e300, "on": True, "off": None, "many": [1, {"deep": "x"}]})

    draft = draft_from_proto(spec_pb.TrainingSpec(plugin=spec_pb.PluginTrainer(name="p", parameters=parameters)))

    assert draft.parameters == {
        "depth": 3, "rate": 0.5, "huge": 1e300, "on": True, "off": None, "many": [1, {"deep": "x"}],
    }  # fmt: skip
    assert isinstance(draft.parameters["depth"], int)
    assert draft.trainer == "p"


def test_a_plug_ins_parameters_come_back_as_they_were_dumped() -> None:
    spec = a_job().spec.model_copy(update={"trainer": "stranger", "parameters": {"depth": 3}})

    shown = spec_to_proto(spec)

    assert shown.plugin.name == "stranger"
    assert shown.plugin.parameters["depth"] == 3


def test_a_request_without_a_specification_is_refused() -> None:
    with pytest.raises(InvalidSpec) as caught:
        start_request_from_proto(pb.StartTrainingRequest(request_id="r"))

    assert caught.value.violations[0].field == "spec"


def test_the_digest_of_a_request_ignores_its_id_and_the_order_of_its_labels() -> None:
    def request(request_id: str, labels: dict[str, str], seed: int = 1) -> str:
        spec = spec_pb.TrainingSpec(seed=seed)
        return start_request_from_proto(
            pb.StartTrainingRequest(request_id=request_id, spec=spec, labels=labels)
        ).body_digest

    assert request("a", {"x": "1", "y": "2"}) == request("b", {"y": "2", "x": "1"})
    assert request("a", {}) != request("a", {}, seed=2)
    assert len(request("a", {})) == 64


def test_a_job_that_failed_shows_everything() -> None:
    job = a_job(
        state=JobState.FAILED,
        state_message="its trainer failed",
        failure=Failure(reason="TRAINER_FAILED", message="no", metadata={"error": "ValueError"}),
        latest_step=a_step(9),
        latest_checkpoint=CheckpointSaved(uri="k", digest="sha256:1", step=8, is_best=True, size_bytes=10),
        labels={"a": "b"},
        restarts=2,
        started_at=NOON,
        ended_at=NOON,
    )

    shown = job_to_proto(job)

    assert shown.name == "trainingJobs/j1"
    assert shown.state == job_pb.TrainingJob.STATE_FAILED
    assert shown.failure.message == "no"
    assert shown.latest_step.step == 9
    assert shown.latest_checkpoint.step == 8
    assert shown.HasField("end_time")
    assert dict(shown.labels) == {"a": "b"}
    assert shown.spec.precision == tensor_pb2.PRECISION_AUTO


def test_a_young_job_leaves_out_what_has_not_happened() -> None:
    shown = job_to_proto(a_job())

    for field in ("latest_step", "failure", "latest_checkpoint", "start_time", "end_time"):
        assert not shown.HasField(field)


@pytest.mark.parametrize("family", FAMILIES.list(), ids=lambda family: family.name)
def test_a_trainer_shows_the_schema_of_its_parameters(family: Any) -> None:
    shown = trainer_to_proto(family)

    assert shown.parameters_schema["type"] == "object"
    assert shown.dataset_formats
    assert not shown.is_plugin
