"""What an ensemble accepts and returns, by the signatures of its members; or all that keeps them from fitting."""

from collections.abc import Callable, Mapping

from headrace_server.errors import Violation
from headrace_server.models.ensemble import Chain, ChainInput, Ensemble, Mean, MemberOutput, Misfit, Vote, order_of
from headrace_server.tensors import Signature, TensorSpec


def signature_of(ensemble: Ensemble, signatures: Mapping[str, Signature]) -> Signature:
    """The signature of an ensemble that is well formed; `signatures` by the names of members.  Raises Misfit."""
    match ensemble.combination:
        case Mean():
            return _common(ensemble, signatures, "mean", lambda spec: spec.data_type.is_floating)
        case Vote():
            return _common(ensemble, signatures, "vote", lambda spec: not spec.data_type.is_floating)
        case Chain() as chain:
            return _Wiring(ensemble, chain, signatures).signature()


def _common(
    ensemble: Ensemble, signatures: Mapping[str, Signature], kind: str, fits: Callable[[TensorSpec], bool]
) -> Signature:
    first = ensemble.members[0].name
    wanted = {spec.name: spec for spec in signatures[first].inputs}
    violations = []
    for index, member in enumerate(ensemble.members):
        inputs = {spec.name: spec for spec in signatures[member.name].inputs}
        if problem := _difference(inputs, wanted):
            violations.append(Violation(f"members[{index}]", f"does not take what {first!r} takes: {problem}"))
    outputs = []
    for spec in signatures[first].outputs:
        others = ({other.name: other for other in signatures[each.name].outputs} for each in ensemble.members)
        if fits(spec) and all(spec.name in each and _is_alike(each[spec.name], spec) for each in others):
            outputs.append(spec)
    if not outputs:
        what = "floating-point output" if kind == "mean" else "output of integers, booleans or text"
        violations.append(Violation(kind, f"the members have no {what} alike"))
    if violations:
        raise Misfit(violations)
    strict = [
        spec.model_copy(update={"finite_only": any(_input(signatures[each.name], spec.name).finite_only
                                                   for each in ensemble.members)})
        for spec in signatures[first].inputs
    ]  # fmt: skip
    return Signature(inputs=tuple(strict), outputs=tuple(outputs))


def _difference(have: Mapping[str, TensorSpec], want: Mapping[str, TensorSpec]) -> str:
    if have.keys() != want.keys():
        return f"it has the inputs {', '.join(have)}, not {', '.join(want)}"
    for name, spec in want.items():
        if not _is_alike(have[name], spec):
            return f"{name!r} is {_describe(have[name])}, not {_describe(spec)}"
    return ""


def _is_alike(one: TensorSpec, other: TensorSpec) -> bool:
    return (one.data_type, one.shape, one.class_names) == (other.data_type, other.shape, other.class_names)


def _describe(spec: TensorSpec) -> str:
    shape = ", ".join("any" if length == -1 else str(length) for length in spec.shape)
    classes = f" of {len(spec.class_names)} classes" if spec.class_names else ""
    return f"{spec.data_type}[{shape}]{classes}"


def _input(signature: Signature, name: str) -> TensorSpec:
    return next(spec for spec in signature.inputs if spec.name == name)


class _Wiring:
    """The wiring of a chain, as it is being checked."""

    def __init__(self, ensemble: Ensemble, chain: Chain, signatures: Mapping[str, Signature]) -> None:
        self._ensemble = ensemble
        self._chain = chain
        self._taken = {name: {spec.name: spec for spec in each.inputs} for name, each in signatures.items()}
        self._given = {name: {spec.name: spec for spec in each.outputs} for name, each in signatures.items()}
        self._inputs: dict[str, TensorSpec] = {}
        self._wired: set[tuple[str, str]] = set()
        self._violations: list[Violation] = []

    def signature(self) -> Signature:
        """What the chain accepts and returns.  Raises Misfit."""
        for index, wire in enumerate(self._chain.inputs):
            self._take(f"chain.inputs[{index}]", wire)
        self._find_what_is_missing()
        outputs = self._outputs()
        if not self._violations:
            order_of(self._ensemble)
        if not self._violations and not self._inputs:
            self._blame("chain.inputs", "must take at least one input of the ensemble")
        if self._violations:
            raise Misfit(self._violations)
        return Signature(inputs=tuple(self._inputs.values()), outputs=outputs)

    def _take(self, field: str, wire: ChainInput) -> None:
        spec = self._find(self._taken, wire.member, wire.input, "input", field)
        if spec is None:
            return
        if (wire.member, wire.input) in self._wired:
            self._blame(field, f"{wire.input!r} of {wire.member!r} is wired twice")
        self._wired.add((wire.member, wire.input))
        if isinstance(wire.source, MemberOutput):
            source = self._find(self._given, wire.source.member, wire.source.output, "output", field)
            if source is not None and not _can_feed(source, spec):
                self._blame(field, f"{_describe(source)} does not fit {_describe(spec)}")
        elif wire.source:
            self._take_input(field, wire.source, spec)
        else:
            self._blame(field, "has no source")

    def _take_input(self, field: str, name: str, spec: TensorSpec) -> None:
        """Note an input of the ensemble; several members may take it if they take it alike."""
        known = self._inputs.setdefault(name, spec.model_copy(update={"name": name}))
        if not _is_alike(known, spec):
            self._blame(field, f"{name!r} is {_describe(known)} elsewhere, and {_describe(spec)} here")
        elif spec.finite_only:
            self._inputs[name] = known.model_copy(update={"finite_only": True})

    def _find_what_is_missing(self) -> None:
        for member in self._ensemble.members:
            for name in self._taken[member.name]:
                if (member.name, name) not in self._wired:
                    self._blame("chain.inputs", f"{name!r} of {member.name!r} comes from nowhere")

    def _outputs(self) -> tuple[TensorSpec, ...]:
        outputs: dict[str, TensorSpec] = {}
        for index, output in enumerate(self._chain.outputs):
            field = f"chain.outputs[{index}]"
            spec = self._find(self._given, output.source.member, output.source.output, "output", field)
            if not output.name or output.name in outputs:
                self._blame(f"{field}.name", f"{output.name!r} is empty or there twice")
            elif spec is not None:
                outputs[output.name] = spec.model_copy(update={"name": output.name})
        if not self._chain.outputs:
            self._blame("chain.outputs", "must name at least one output")
        return tuple(outputs.values())

    def _find(
        self, specs: Mapping[str, Mapping[str, TensorSpec]], member: str, name: str, what: str, field: str
    ) -> TensorSpec | None:
        if member not in specs:
            self._blame(field, f"there is no member {member!r}")
            return None
        if name not in specs[member]:
            self._blame(field, f"{member!r} has no {what} {name!r}; it has {', '.join(specs[member])}")
            return None
        return specs[member][name]

    def _blame(self, field: str, description: str) -> None:
        self._violations.append(Violation(field, description))


def _can_feed(source: TensorSpec, target: TensorSpec) -> bool:
    """Whether an output may be an input; lengths that are free on one side are found to fit, or not, in each call."""
    return (
        source.data_type == target.data_type
        and len(source.shape) == len(target.shape)
        and all(-1 in (one, other) or one == other for one, other in zip(source.shape, target.shape, strict=True))
    )
