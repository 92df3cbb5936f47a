"""Ensembles as people write them down become messages of the contract."""

import pytest

import headrace


def test_a_mean_and_a_vote_name_their_members_and_weigh_some() -> None:
    made = headrace.vote({"a": "digits@champion", "b": "digits"}, weights={"b": 0.5})

    assert made.WhichOneof("combination") == "vote"
    assert [(each.name, each.model) for each in made.members] == [
        ("a", "models/digits@champion"), ("b", "models/digits"),
    ]  # fmt: skip
    assert [each.HasField("weight") for each in made.members] == [False, True]


def test_a_chain_tells_inputs_of_the_ensemble_from_outputs_of_members() -> None:
    made = headrace.chain({"a": "m", "b": "n"}, {"a.x": "image", "b.x": "a.y"}, {"result": "b.y"}).chain

    assert [wire.WhichOneof("source") for wire in made.inputs] == ["ensemble_input", "member_output"]
    assert (made.inputs[1].member_output.member, made.inputs[1].member_output.output) == ("a", "y")
    assert (made.outputs[0].name, made.outputs[0].source.output) == ("result", "y")


def test_what_is_not_of_the_form_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r"'x' is not of the form member\.name"):
        headrace.chain({"a": "m"}, {"x": "image"}, {})
    with pytest.raises(ValueError, match="a weight for 'c', which is no member"):
        headrace.mean({"a": "m"}, weights={"c": 1})
