"""Whether the members of an ensemble exist, and fit each other, when it is registered."""

import hashlib
import json
from collections.abc import Awaitable, Callable

from headrace_server.errors import InvalidName, InvalidSpec, ModelNotFound, Violation
from headrace_server.models.ensemble import DEEPEST, Ensemble, Misfit, check_form
from headrace_server.models.ensemble_signature import signature_of
from headrace_server.models.version import ModelVersion, NewVersion
from headrace_server.names import ModelName
from headrace_server.tensors import Signature

Resolve = Callable[[ModelName], Awaitable[ModelVersion]]


async def prepare(model: str, ensemble: Ensemble, resolve: Resolve) -> tuple[NewVersion, str]:
    """What an ensemble becomes as a version of `model`, and a digest of what was asked for.  Raises InvalidSpec."""
    body = json.dumps([model, ensemble.model_dump(mode="json")])
    signature = await _signature(model, ensemble, resolve)
    new = NewVersion(model=model, signature=signature, artifacts=(), ensemble=ensemble)
    return new, f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"


async def _signature(model: str, ensemble: Ensemble, resolve: Resolve) -> Signature:
    violations = check_form(ensemble)
    if violations:
        raise InvalidSpec(_under("ensemble", violations))
    signatures: dict[str, Signature] = {}
    for index, member in enumerate(ensemble.members):
        field = f"members[{index}].model"
        try:
            name = ModelName.parse(member.model, field)
            if name.model == model and name.version is None:
                violations.append(Violation(field, f"{name} may come to mean this very ensemble: name a version"))
                continue
            version = await resolve(name)
        except InvalidName as error:
            violations += error.violations
            continue
        except ModelNotFound as error:
            violations.append(Violation(field, str(error)))
            continue
        depth = await _depth(version, resolve)
        if depth >= DEEPEST:
            violations.append(Violation(field, f"is an ensemble {depth} deep; {DEEPEST} with this one are allowed"))
        signatures[member.name] = version.signature
    if not violations:
        try:
            return signature_of(ensemble, signatures)
        except Misfit as misfit:
            violations += misfit.violations
    raise InvalidSpec(_under("ensemble", violations))


async def _depth(version: ModelVersion, resolve: Resolve, limit: int = DEEPEST) -> int:
    """How many ensembles are in each other here, as names mean now; counted no further than `limit`."""
    if version.ensemble is None or limit == 0:
        return 0
    deepest = 0
    for member in version.ensemble.members:
        try:
            inner = await resolve(ModelName.parse(member.model))
        except ModelNotFound:
            continue  # told when it is asked
        deepest = max(deepest, await _depth(inner, resolve, limit - 1))
    return deepest + 1


def _under(field: str, violations: list[Violation]) -> list[Violation]:
    return [Violation(f"{field}.{violation.field}", violation.description) for violation in violations]
