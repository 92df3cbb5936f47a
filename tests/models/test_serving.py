"""How the versions of a model are served, and who hears of a change."""

import pytest

from headrace_server.errors import ModelNotFound
from headrace_server.models.registry import Registry
from headrace_server.models.serving import ServingOptions
from headrace_server.precision import Precision, PrecisionPolicy, Tolerances
from tests.models.test_registry import register

STRICT = PrecisionPolicy(precision=Precision.AUTO, tolerances=Tolerances(min_cosine=0.9999))


def with_policy(policy: PrecisionPolicy) -> ServingOptions:
    return ServingOptions(precision=policy)


async def test_a_new_model_has_the_defaults(registry: Registry) -> None:
    await register(registry)

    assert await registry.serving("digits") == ServingOptions()
    assert (await registry.get("digits")).serving == ServingOptions()


async def test_a_change_keeps_what_it_does_not_name_and_is_seen_by_the_next_call(registry: Registry) -> None:
    await register(registry)
    await registry.serving("digits")

    await registry.change_serving("digits", lambda serving: serving.model_copy(update={"is_pinned": True}))
    changed = await registry.change_serving("digits", lambda serving: serving.model_copy(update={"precision": STRICT}))

    assert changed.serving == ServingOptions(precision=STRICT, is_pinned=True)
    assert await registry.serving("digits") == changed.serving


async def test_whoever_watches_hears_of_a_change_once_it_is_true(registry: Registry) -> None:
    await register(registry)
    heard: list[tuple[str, ServingOptions]] = []
    registry.watch_serving(lambda model, serving: heard.append((model, serving)))

    await registry.change_serving("digits", lambda _: with_policy(STRICT))

    assert heard == [("digits", with_policy(STRICT))]


async def test_a_model_that_does_not_exist_has_no_options(registry: Registry) -> None:
    with pytest.raises(ModelNotFound):
        await registry.serving("nothing")
    with pytest.raises(ModelNotFound):
        await registry.change_serving("nothing", lambda serving: serving)


async def test_what_a_change_raises_leaves_everything_as_it_was(registry: Registry) -> None:
    await register(registry)

    def refuse(_: ServingOptions) -> ServingOptions:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await registry.change_serving("digits", refuse)
    assert await registry.serving("digits") == ServingOptions()
