"""Ensembles, between the contract's messages and the registry's values, both ways."""

from headrace.models.v1 import ensemble_pb2 as pb
from headrace_server.errors import InvalidSpec, Violation
from headrace_server.models.ensemble import (
    Chain,
    ChainInput,
    ChainOutput,
    Ensemble,
    Mean,
    Member,
    MemberOutput,
    Vote,
)


def ensemble_from_proto(message: pb.Ensemble) -> Ensemble:
    """Read an ensemble; whether it makes sense is the registry's to say.  Raises InvalidSpec without a combination."""
    return Ensemble(members=tuple(map(_member_from_proto, message.members)), combination=_combination_from(message))


def ensemble_to_proto(ensemble: Ensemble) -> pb.Ensemble:
    """An ensemble as it was registered."""
    message = pb.Ensemble()
    for member in ensemble.members:
        message.members.add(name=member.name, model=member.model, weight=member.weight if member.weight != 1 else None)
    match ensemble.combination:
        case Mean():
            message.mean.SetInParent()
        case Vote():
            message.vote.SetInParent()
        case Chain() as chain:
            message.chain.SetInParent()
            for wire in chain.inputs:
                _write_wire(wire, message.chain.inputs.add(member=wire.member, input=wire.input))
            for output in chain.outputs:
                message.chain.outputs.add(name=output.name, source=_output_to_proto(output.source))
    return message


def _member_from_proto(message: pb.EnsembleMember) -> Member:
    weight = message.weight if message.HasField("weight") else 1.0
    # A weight that is no number at all is refused like every other that is not greater than 0.
    return Member(name=message.name, model=message.model, weight=weight if abs(weight) < float("inf") else -1.0)


def _combination_from(message: pb.Ensemble) -> Mean | Vote | Chain:
    match message.WhichOneof("combination"):
        case "mean":
            return Mean()
        case "vote":
            return Vote()
        case "chain":
            return Chain(
                inputs=tuple(map(_wire_from_proto, message.chain.inputs)),
                outputs=tuple(
                    ChainOutput(name=output.name, source=_output_from_proto(output.source))
                    for output in message.chain.outputs
                ),
            )
        case _:
            raise InvalidSpec([Violation("ensemble.combination", "is required: mean, vote or chain")])


def _wire_from_proto(message: pb.ChainInput) -> ChainInput:
    if message.WhichOneof("source") == "member_output":
        return ChainInput(member=message.member, input=message.input, source=_output_from_proto(message.member_output))
    return ChainInput(member=message.member, input=message.input, source=message.ensemble_input)


def _write_wire(wire: ChainInput, message: pb.ChainInput) -> None:
    if isinstance(wire.source, MemberOutput):
        message.member_output.CopyFrom(_output_to_proto(wire.source))
    else:
        message.ensemble_input = wire.source


def _output_from_proto(message: pb.MemberOutput) -> MemberOutput:
    return MemberOutput(member=message.member, output=message.output)


def _output_to_proto(output: MemberOutput) -> pb.MemberOutput:
    return pb.MemberOutput(member=output.member, output=output.output)
