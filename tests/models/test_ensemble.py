"""Ensembles are refused with all that is wrong with them, and have the signature that their members give them."""

import pytest

from headrace_server.models.ensemble import (
    Chain,
    ChainInput,
    ChainOutput,
    Ensemble,
    Mean,
    Member,
    MemberOutput,
    Misfit,
    Vote,
    check_form,
    order_of,
)
from headrace_server.models.ensemble_signature import signature_of
from headrace_server.tensors import DataType, Signature, TensorSpec


def spec(
    name: str, data_type: DataType = DataType.FP32, shape: tuple[int, ...] = (-1, 2), **more: object
) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "data_type": data_type, "shape": shape, **more})


def takes(*inputs: TensorSpec, gives: tuple[TensorSpec, ...]) -> Signature:
    return Signature(inputs=inputs, outputs=gives)


SCORES, LABEL = spec("scores"), spec("label", DataType.INT64, (-1,))
CLASSIFIER = takes(spec("x"), gives=(SCORES, LABEL))


def both(combination: Mean | Vote) -> Ensemble:
    members = (Member(name="a", model="models/m"), Member(name="b", model="models/n", weight=2))
    return Ensemble(members=members, combination=combination)


def chain(*wires: tuple[str, str], outputs: dict[str, str], members: str = "ab") -> Ensemble:
    """Wires as ("a.x", "x") or ("b.x", "a.y"); outputs as {"result": "b.y"}."""
    inputs = [ChainInput(member=at[0], input=at[2:], source=_source(source)) for at, source in wires]
    return Ensemble(
        members=tuple(Member(name=name, model=f"models/{name}") for name in members),
        combination=Chain(
            inputs=tuple(inputs), outputs=tuple(ChainOutput(name=key, source=_out(at)) for key, at in outputs.items())
        ),
    )


def _source(text: str) -> str | MemberOutput:
    return _out(text) if "." in text else text


def _out(text: str) -> MemberOutput:
    return MemberOutput(member=text[0], output=text[2:])


def problems(ensemble: Ensemble, **signatures: Signature) -> list[tuple[str, str]]:
    with pytest.raises(Misfit) as caught:
        signature_of(ensemble, signatures)
    return [(violation.field, violation.description) for violation in caught.value.violations]


def test_a_mean_offers_what_is_floating_and_a_vote_what_is_not() -> None:
    signatures = {"a": CLASSIFIER, "b": CLASSIFIER}

    assert signature_of(both(Mean()), signatures) == takes(spec("x"), gives=(SCORES,))
    assert signature_of(both(Vote()), signatures) == takes(spec("x"), gives=(LABEL,))


def test_only_what_all_members_have_alike_is_offered() -> None:
    named = takes(spec("x"), gives=(spec("scores", class_names=("yes", "no")), spec("more")))
    other = takes(spec("x"), gives=(spec("scores", class_names=("no", "yes")), spec("more")))

    assert [each.name for each in signature_of(both(Mean()), {"a": named, "b": other}).outputs] == ["more"]


def test_members_that_take_different_inputs_are_refused_by_place() -> None:
    wider = takes(spec("x", shape=(-1, 3)), gives=(SCORES,))
    renamed = takes(spec("rows"), gives=(SCORES,))

    assert problems(both(Mean()), a=CLASSIFIER, b=wider) == [
        ("members[1]", "does not take what 'a' takes: 'x' is FP32[any, 3], not FP32[any, 2]")
    ]
    assert problems(both(Mean()), a=CLASSIFIER, b=renamed) == [
        ("members[1]", "does not take what 'a' takes: it has the inputs rows, not x")
    ]


def test_a_vote_of_members_that_only_score_is_refused() -> None:
    scorer = takes(spec("x"), gives=(SCORES,))

    assert problems(both(Vote()), a=scorer, b=scorer) == [
        ("vote", "the members have no output of integers, booleans or text alike")
    ]


def test_what_one_member_refuses_the_ensemble_refuses() -> None:
    strict = takes(spec("x", finite_only=True), gives=(SCORES,))

    assert signature_of(both(Mean()), {"a": CLASSIFIER, "b": strict}).inputs[0].finite_only


def test_a_chain_takes_what_its_wires_name_and_returns_what_its_outputs_name() -> None:
    first, second = takes(spec("x"), gives=(spec("y"),)), takes(spec("u"), spec("v"), gives=(spec("w"),))
    wired = chain(("b.u", "a.y"), ("a.x", "image"), ("b.v", "image"), outputs={"result": "b.w", "between": "a.y"})

    assert signature_of(wired, {"a": first, "b": second}) == takes(
        spec("image"), gives=(spec("result"), spec("between"))
    )
    assert order_of(wired) == ["a", "b"]


def test_everything_that_is_wrong_with_a_wiring_is_found_at_once() -> None:
    first, second = takes(spec("x"), gives=(spec("y", shape=(-1, 3)),)), takes(spec("u"), spec("v"), gives=(spec("w"),))
    wired = chain(("a.x", "c.y"), ("a.x", "image"), ("a.z", "image"), ("b.u", "a.y"), outputs={"result": "b.nothing"})

    assert problems(wired, a=first, b=second) == [
        ("chain.inputs[0]", "there is no member 'c'"),
        ("chain.inputs[1]", "'x' of 'a' is wired twice"),
        ("chain.inputs[2]", "'a' has no input 'z'; it has x"),
        ("chain.inputs[3]", "FP32[any, 3] does not fit FP32[any, 2]"),
        ("chain.inputs", "'v' of 'b' comes from nowhere"),
        ("chain.outputs[0]", "'b' has no output 'nothing'; it has w"),
    ]


def test_members_that_feed_each_other_in_a_circle_are_named() -> None:
    both_ways = takes(spec("x"), spec("z"), gives=(spec("y"),))
    wired = chain(("a.x", "b.y"), ("b.x", "a.y"), ("a.z", "image"), ("b.z", "image"), outputs={"result": "b.y"})

    ((field, problem),) = problems(wired, a=both_ways, b=both_ways)

    assert field == "chain.inputs"
    assert problem in {
        "members feed each other in a circle: a → b → a", "members feed each other in a circle: b → a → b"
    }  # fmt: skip


def test_a_chain_that_takes_nothing_from_its_caller_is_refused() -> None:
    assert problems(chain(outputs={"r": "a.y"}, members="a"), a=takes(gives=(spec("y"),))) == [
        ("chain.inputs", "must take at least one input of the ensemble")
    ]


def test_an_input_that_two_members_take_differently_is_refused() -> None:
    floats, integers = takes(spec("x"), gives=(SCORES,)), takes(spec("x", DataType.INT64), gives=(LABEL,))
    wired = chain(("a.x", "rows"), ("b.x", "rows"), outputs={"s": "a.scores"})

    assert problems(wired, a=floats, b=integers) == [
        ("chain.inputs[1]", "'rows' is FP32[any, 2] elsewhere, and INT64[any, 2] here")
    ]


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ((), "members"),
        (tuple(Member(name=f"m{index}", model="models/m") for index in range(33)), "members"),
        ((Member(name="A", model="models/m"),), "members[0].name"),
        ((Member(name="a", model="models/m"), Member(name="a", model="models/m")), "members[1].name"),
        ((Member(name="a", model="models/m", weight=0),), "members[0].weight"),
    ],
)
def test_a_form_that_no_members_could_mend_is_refused(members: tuple[Member, ...], field: str) -> None:
    assert [violation.field for violation in check_form(Ensemble(members=members, combination=Mean()))] == [field]


def test_a_weight_in_a_chain_means_nothing_and_is_refused() -> None:
    weighted = Ensemble(
        members=(Member(name="a", model="models/m", weight=2),), combination=Chain(inputs=(), outputs=())
    )

    assert [violation.field for violation in check_form(weighted)] == ["members[0].weight"]
