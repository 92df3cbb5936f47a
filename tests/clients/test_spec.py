from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

import headrace
from headrace import Client, training_spec
from headrace.spec import spec_from_json
from headrace.training.v1.training_spec_pb2 import Optimizer, Resources, TrainingSpec
from headrace.type.v1.tensor_pb2 import Precision
from tests.doubles.scripted_server import ScriptedServer


def test_keywords_become_the_contracts_message() -> None:
    spec = training_spec(
        dataset="digits",
        model="models/digits",
        trainer=headrace.ImageClassificationTrainer(width=16),
        epochs=3,
        batch_size=32,
        optimizer=headrace.Sgd(learning_rate=0.1),
        schedule=headrace.ConstantSchedule(),
        micro_batches=4,
        split_to_fit=True,
        max_gradient_norm=1.0,
        moving_average=headrace.MovingAverage(decay=0.99),
        numerics=headrace.Numerics(on_non_finite=headrace.Numerics.ACTION_SKIP),
        deterministic=True,
        compilation="never",
        channels_last=False,
        strategy="fully_sharded",
        precision="bf16",
        seed=0,
        evaluation=headrace.Evaluation(holdout_fraction=0.1),
        early_stopping=headrace.EarlyStopping(patience=2),
        checkpoint_period=timedelta(seconds=90),
        keep_last=3,
        start_from="digits@champion",
        device="cpu",
        ranks=2,
        placement=headrace.Placement(mode=headrace.Placement.MODE_YIELD),
        preemptible=True,
        max_restarts=0,
    )

    assert spec.dataset == "datasets/digits"
    assert spec.image_classification.width == 16
    assert spec.WhichOneof("length") == "epochs"
    assert spec.epochs == 3
    assert spec.optimizer == Optimizer(sgd=headrace.Sgd(learning_rate=0.1))
    assert spec.schedule.WhichOneof("kind") == "constant"
    assert spec.precision == Precision.PRECISION_BF16
    assert (spec.micro_batches, spec.split_to_fit, spec.max_gradient_norm) == (4, True, 1.0)
    assert spec.moving_average.decay == 0.99
    assert spec.numerics.on_non_finite == headrace.Numerics.ACTION_SKIP
    assert spec.deterministic
    assert spec.compilation == TrainingSpec.COMPILATION_NEVER
    assert spec.HasField("channels_last")  # a false that was meant
    assert spec.strategy == TrainingSpec.STRATEGY_FULLY_SHARDED
    assert spec.HasField("seed")  # a zero that was meant
    assert spec.HasField("max_restarts")
    assert spec.checkpoints.period.ToTimedelta() == timedelta(seconds=90)
    assert (spec.checkpoints.keep_last, spec.checkpoints.HasField("keep_best")) == (3, False)
    assert spec.start_from.model == "models/digits@champion"
    assert spec.resources.device == Resources.Device.DEVICE_CPU
    assert spec.resources.ranks == 2
    assert spec.resources.preemptible
    assert spec.resources.placement.mode == headrace.Placement.MODE_YIELD
    from_job = training_spec(dataset="d", model="m", start_from="trainingJobs/first@best")
    assert from_job.start_from.training_job == "trainingJobs/first@best"


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (headrace.ConstantSchedule(), "constant"),
        (headrace.CosineSchedule(), "cosine"),
        (headrace.LinearSchedule(), "linear"),
        (headrace.StepDecaySchedule(), "step_decay"),
    ],
)
def test_every_schedule_can_be_asked_for(schedule: Any, kind: str) -> None:
    assert training_spec(dataset="d", model="m", schedule=schedule).schedule.WhichOneof("kind") == kind


def test_what_is_not_said_is_left_to_the_server() -> None:
    spec = training_spec(dataset="d", model="m", trainer=headrace.TabularTrainer(target="t"))

    assert MessageToDict(spec) == {"dataset": "datasets/d", "model": "models/m", "tabular": {"target": "t"}}


def test_a_plugin_has_a_name_and_parameters_of_its_own() -> None:
    spec = training_spec(dataset="d", model="m", trainer=headrace.plugin("forest", depth=3, name="oak"))

    assert spec.plugin.name == "forest"
    assert MessageToDict(spec.plugin.parameters) == {"depth": 3.0, "name": "oak"}


@pytest.mark.parametrize(
    ("keywords", "problem"),
    [
        ({"epoch": 3}, "epoch: not a part of a specification"),
        ({"epochs": 3, "steps": 4}, "epochs or steps, not both"),
        ({"trainer": "tabular"}, "str is not a trainer"),
        ({"optimizer": "adam"}, "neither AdamW nor Sgd"),
        ({"schedule": "cosine"}, "str is not a schedule"),
    ],
)
def test_mistakes_in_keywords_are_type_errors(keywords: dict[str, Any], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        training_spec(**keywords)


def test_json_in_the_contracts_form_is_a_specification() -> None:
    spec = spec_from_json({"dataset": "datasets/d", "imageClassification": {"width": 8}, "epochs": 2})

    assert spec == TrainingSpec(
        dataset="datasets/d", image_classification=headrace.ImageClassificationTrainer(width=8), epochs=2
    )


@pytest.mark.parametrize("tree", [{"epoch": 1}, {"epochs": "many"}, {"tabular": 3}, {"epochs": 1, "steps": 1}])
def test_json_that_the_contract_does_not_have_names_the_field(tree: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"epoch|tabular|length"):
        spec_from_json(tree)


async def test_a_training_starts_from_keywords_or_from_a_message(client: Client, server: ScriptedServer) -> None:
    trainer = headrace.TabularTrainer(target="t")
    spec = training_spec(dataset="d", model="m", trainer=trainer, epochs=1)

    await client.start_training(spec, job_id="nightly", labels={"team": "blue"}, request_id="r1")
    await client.start_training(dataset="d", model="m", trainer=trainer, epochs=1, validate_only=True)

    first, second = server.training.requests
    assert first.spec == second.spec == spec
    assert (first.job_id, first.labels["team"], first.request_id) == ("nightly", "blue", "r1")
    assert second.validate_only
    with pytest.raises(TypeError, match="not both: epochs"):
        await client.start_training(spec, epochs=2)
