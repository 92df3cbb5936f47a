"""Ensembles, as one writes them down: a mean, a vote, or a chain of models.

    headrace.mean({"a": "digits@champion", "b": "models/digits/versions/2"}, weights={"a": 2})
    headrace.chain(
        {"clean": "denoiser", "read": "digits"},
        inputs={"clean.image": "image", "read.image": "clean.result"},
        outputs={"scores": "read.scores"},
    )

Members are named by what the ensemble calls them, inputs and outputs of members as "member.name"; a source without a
dot is an input of the ensemble.  A member named by its version stays what it is; others follow their name.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.models.v1.ensemble_pb2 import (
    ChainCombination,
    ChainInput,
    ChainOutput,
    Ensemble,
    EnsembleMember,
    MeanCombination,
    MemberOutput,
    VoteCombination,
)
from headrace.names import model_name


def mean(members: Mapping[str, str], weights: Mapping[str, float] | None = None) -> Ensemble:
    """The weighted mean of what the members answer.  `members`: a name for each, and the model it is."""
    return Ensemble(members=_members(members, weights), mean=MeanCombination())


def vote(members: Mapping[str, str], weights: Mapping[str, float] | None = None) -> Ensemble:
    """What most of the members answer, by weight."""
    return Ensemble(members=_members(members, weights), vote=VoteCombination())


def chain(members: Mapping[str, str], inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Ensemble:
    """Members that feed each other: `inputs` maps each "member.input" to its source, `outputs` each name to one.

    Raises ValueError for what is not of the form "member.name".
    """
    wiring = ChainCombination()
    for place, source in inputs.items():
        at = _place(place)
        wire = ChainInput(member=at.member, input=at.output)
        if "." in source:
            wire.member_output.CopyFrom(_place(source))
        else:
            wire.ensemble_input = source
        wiring.inputs.append(wire)
    wiring.outputs.extend(ChainOutput(name=name, source=_place(source)) for name, source in outputs.items())
    return Ensemble(members=_members(members, None), chain=wiring)


def _members(members: Mapping[str, str], weights: Mapping[str, float] | None) -> list[EnsembleMember]:
    weights = weights or {}
    if strange := weights.keys() - members.keys():
        raise ValueError(f"there is a weight for {min(strange)!r}, which is no member")
    return [
        EnsembleMember(name=name, model=model_name(model), weight=weights.get(name)) for name, model in members.items()
    ]


def _place(text: str) -> MemberOutput:
    member, dot, name = text.partition(".")
    if not dot or not member or not name:
        raise ValueError(f"{text!r} is not of the form member.name")
    return MemberOutput(member=member, output=name)
