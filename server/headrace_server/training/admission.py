"""Turns a request into a specification, or says everything that is wrong with it at once.

Fills in every default, freezes the data set to one version and chooses the seed, so that the specification alone
decides what a training does.  Keeps nothing.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from headrace_server.datasets.dataset import DatasetVersion
from headrace_server.devices import Devices
from headrace_server.errors import DatasetNotFound, InvalidName, InvalidSpec, Violation
from headrace_server.names import ID_RULE, DatasetName, ModelName, is_id
from headrace_server.trainers.family import Family, Parameters
from headrace_server.trainers.recipe import Device, Recipe
from headrace_server.training.draft import SpecDraft, StartRequest
from headrace_server.training.goods import Datasets, KnownFamilies
from headrace_server.training.spec import StartPoint, TrainingSpec
from headrace_server.training.start_points import StartPoints

LONGEST_REQUEST_ID = 128
MOST_LABELS = 64
LONGEST_LABEL_KEY = 63
LONGEST_LABEL_VALUE = 255
PRIORITIES = range(-100, 101)
RESTARTS = range(101)
MOST_RANKS = 64
DEFAULT_MAX_RESTARTS = 3
LARGEST_CHOSEN_SEED = 2**32

ModelT = TypeVar("ModelT", bound=BaseModel)


class Admission:
    """Checks requests against what there is: families, data sets, devices."""

    def __init__(
        self, families: KnownFamilies, datasets: Datasets, start_points: StartPoints, devices: Callable[[], Devices]
    ) -> None:
        self._families = families
        self._datasets = datasets
        self._start_points = start_points
        self._devices = devices

    async def admit(self, request: StartRequest) -> TrainingSpec:
        """The specification that a request asks for.

        Raises InvalidSpec with every violation, or DatasetNotFound when nothing else is wrong.
        """
        draft = request.draft
        violations = request_violations(request)
        family = self._find_family(draft, violations)
        parameters = None if family is None else _validate(family.parameters, draft.parameters, "parameters", draft)
        recipe = _validate(Recipe, _with_seed(draft.recipe), "recipe", draft)
        model = _find_model(draft, violations)
        violations += _violations_of(parameters) + _violations_of(recipe)
        violations += _limit_violations(draft)
        if isinstance(recipe, Recipe):
            violations += await self._recipe_violations(draft, recipe, family)
        start_from = await self._find_start(draft, violations)
        dataset, missing = await self._find_dataset(draft, violations)
        if dataset is not None and family is not None:
            violations += _dataset_violations(draft, family, parameters, dataset)
        if violations:
            raise InvalidSpec(violations + _missing_violation(draft, missing))
        if missing is not None:
            raise missing
        assert dataset is not None
        assert model is not None
        assert isinstance(parameters, Parameters)
        assert isinstance(recipe, Recipe)
        return TrainingSpec(
            dataset=str(dataset.name),
            dataset_digest=dataset.digest,
            trainer=draft.trainer,
            parameters=parameters.model_dump(mode="json"),
            model=str(model),
            recipe=recipe,
            priority=draft.priority,
            is_preemptible=draft.is_preemptible,
            num_ranks=1 if draft.num_ranks is None else draft.num_ranks,
            start_from=start_from,
            max_restarts=DEFAULT_MAX_RESTARTS if draft.max_restarts is None else draft.max_restarts,
        )

    def _find_family(self, draft: SpecDraft, violations: list[Violation]) -> Family | None:
        known = ", ".join(family.name for family in self._families.list())
        if not draft.trainer:
            violations.append(Violation(draft.field_path("trainer"), f"is required: one of {known}"))
            return None
        if (family := self._families.get(draft.trainer)) is None:
            violations.append(Violation(draft.field_path("trainer"), f"{draft.trainer!r} is not one of {known}"))
        return family

    async def _find_dataset(
        self, draft: SpecDraft, violations: list[Violation]
    ) -> tuple[DatasetVersion | None, DatasetNotFound | None]:
        field = draft.field_path("dataset")
        if not draft.dataset:
            violations.append(Violation(field, "is required: datasets/{dataset}"))
            return None, None
        try:
            return await self._datasets.version(DatasetName.parse(draft.dataset, field)), None
        except InvalidName as error:
            violations.extend(error.violations)
            return None, None
        except DatasetNotFound as error:
            return None, error

    async def _recipe_violations(self, draft: SpecDraft, recipe: Recipe, family: Family | None) -> list[Violation]:
        found = []
        metric = recipe.evaluation.metric
        if family is not None and metric and metric not in family.metrics:
            description = f"{metric!r} is not a measure of {family.name}: {', '.join(family.metrics)}"
            found.append(Violation(draft.field_path("recipe.evaluation.metric"), description))
        # Looking for devices may ask a driver, which takes its time.
        devices = await asyncio.to_thread(self._devices)
        if recipe.device is Device.GPU and not devices.has_gpu:
            found.append(Violation(draft.field_path("recipe.device"), "this server has no GPU"))
        if draft.num_ranks is not None and (problem := _describe_ranks(draft.num_ranks, recipe, devices)):
            found.append(Violation(draft.field_path("num_ranks"), problem))
        return found

    async def _find_start(self, draft: SpecDraft, violations: list[Violation]) -> StartPoint | None:
        if not draft.start_from:
            return None
        found = await self._start_points.find(draft.start_from, draft.field_path("start_from"))
        if isinstance(found, Violation):
            violations.append(found)
            return None
        return found


def _describe_ranks(num_ranks: int, recipe: Recipe, devices: Devices) -> str:
    """Why so many ranks cannot train here; empty when they can."""
    if not 1 <= num_ranks <= MOST_RANKS:
        return f"must be 1 to {MOST_RANKS}"
    if recipe.device is Device.CPU or not devices.has_gpu:
        limit, what = devices.num_cores, "processor cores"
    else:
        limit, what = devices.num_gpus, "GPUs"
    if num_ranks > limit:
        return f"{num_ranks} ranks need as many {what}, and this server has {limit}"
    if recipe.batch_size < num_ranks:
        return f"{num_ranks} ranks cannot share the {recipe.batch_size} rows of a step"
    return ""


def request_violations(request: StartRequest) -> list[Violation]:
    """What is wrong with a request beside its specification."""
    found = []
    if len(request.request_id) > LONGEST_REQUEST_ID:
        found.append(Violation("request_id", f"must be at most {LONGEST_REQUEST_ID} characters"))
    if request.job_id and not is_id(request.job_id):
        found.append(Violation("job_id", f"must be {ID_RULE}"))
    if len(request.labels) > MOST_LABELS:
        found.append(Violation("labels", f"at most {MOST_LABELS} are allowed, got {len(request.labels)}"))
    for key, value in request.labels.items():
        if not 1 <= len(key) <= LONGEST_LABEL_KEY:
            found.append(Violation("labels", f"the key {key[:80]!r} must have 1 to {LONGEST_LABEL_KEY} characters"))
        if len(value) > LONGEST_LABEL_VALUE:
            found.append(Violation(f"labels[{key[:80]!r}]", f"must have at most {LONGEST_LABEL_VALUE} characters"))
    return found


def _find_model(draft: SpecDraft, violations: list[Violation]) -> ModelName | None:
    field = draft.field_path("model")
    if not draft.model:
        violations.append(Violation(field, "is required: models/{model}"))
        return None
    try:
        name = ModelName.parse(draft.model, field)
    except InvalidName as error:
        violations.extend(error.violations)
        return None
    if name.version is not None or name.alias is not None:
        violations.append(Violation(field, f"must be models/{name.model}: the result becomes a new version of it"))
    return name


def _with_seed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {"seed": secrets.randbelow(LARGEST_CHOSEN_SEED), **recipe}


def _limit_violations(draft: SpecDraft) -> list[Violation]:
    found = []
    if draft.priority not in PRIORITIES:
        found.append(Violation(draft.field_path("priority"), "must be -100 to 100"))
    if draft.max_restarts is not None and draft.max_restarts not in RESTARTS:
        found.append(Violation(draft.field_path("max_restarts"), "must be 0 to 100"))
    return found


def _dataset_violations(
    draft: SpecDraft, family: Family, parameters: BaseModel | list[Violation] | None, dataset: DatasetVersion
) -> list[Violation]:
    if dataset.format not in family.formats:
        formats = ", ".join(family.formats)
        description = f"{dataset.name} is {dataset.format}, but the trainer {family.name} reads {formats}"
        return [Violation(draft.field_path("dataset"), description)]
    if not isinstance(parameters, Parameters):
        return []
    return [
        Violation(draft.field_path(f"parameters.{found.field}" if found.field else "parameters"), found.description)
        for found in parameters.violations(dataset)
    ]


def _missing_violation(draft: SpecDraft, missing: DatasetNotFound | None) -> list[Violation]:
    return [] if missing is None else [Violation(draft.field_path("dataset"), str(missing))]


def _validate(model: type[ModelT], values: Mapping[str, Any], root: str, draft: SpecDraft) -> ModelT | list[Violation]:
    """The validated model, or what is wrong with it, with fields as the contract names them."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        return [
            Violation(draft.field_path(_path(root, problem["loc"], values)), _describe(problem["type"], problem["msg"]))
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]


def _violations_of(outcome: BaseModel | list[Violation] | None) -> list[Violation]:
    return outcome if isinstance(outcome, list) else []


def _path(root: str, location: tuple[int | str, ...], values: Any) -> str:
    """A path inside the draft, without the names of union members, which pydantic puts into its locations."""
    path, node = root, values
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
            node = node[part] if isinstance(node, Sequence) and part < len(node) else None
        elif isinstance(node, Mapping) and part not in node and node.get("kind") == part:
            continue
        else:
            path += f".{part}"
            node = node.get(part) if isinstance(node, Mapping) else None
    return path


def _describe(kind: str, message: str) -> str:
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not a field that is known here"
        case _:
            return message[:1].lower() + message[1:]
