"""The request can never succeed."""

from collections.abc import Sequence

from headrace_server.errors.error import HeadraceError, Violation


class Invalid(HeadraceError):
    """The request can never succeed as it is; `violations` lists every field that must change."""

    reason = "INVALID_SPEC"

    def __init__(self, message: str, violations: Sequence[Violation] = (), **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.violations = tuple(violations)


class InvalidSpec(Invalid):
    """Fields of a request are missing, unknown or out of range."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        assert violations
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}", violations)
        self.metadata = {**self.metadata, "violations": str(len(violations))}


class InvalidTensor(Invalid):
    """Tensors do not fit the signature of the model."""

    reason = "INVALID_TENSOR"

    def __init__(self, violations: Sequence[Violation], model: str = "") -> None:
        assert violations
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}", violations, model=model)
        self.metadata = {**self.metadata, "violations": str(len(violations))}


class InvalidName(Invalid):
    """A resource name has the wrong form."""

    reason = "INVALID_NAME"

    def __init__(self, name: str, expected: str, field: str = "name") -> None:
        description = f"{name!r} is not of the form {expected}"
        super().__init__(description, [Violation(field, description)], name=name, expected=expected)


class InvalidDataset(Invalid):
    """A content cannot be read as what it claims to be."""

    reason = "INVALID_DATASET"

    def __init__(self, problem: str, format: str = "", **metadata: object) -> None:  # noqa: A002 - the contract's word
        super().__init__(problem, [Violation("dataset", problem)], format=format, problem=problem, **metadata)


class InvalidModel(Invalid):
    """A model file cannot be read, or asks for what this server cannot run."""

    reason = "INVALID_MODEL"

    def __init__(self, problem: str, **metadata: object) -> None:
        super().__init__(problem, [Violation("model", problem)], problem=problem, **metadata)


class InvalidPageToken(Invalid):
    """A page token was made by another method, or for another question."""

    reason = "INVALID_PAGE_TOKEN"

    def __init__(self) -> None:
        description = "not a token that this method made for this question; start again without one"
        super().__init__(f"page_token: {description}", [Violation("page_token", description)])


class TooLarge(Invalid):
    """A message, an upload or what it unpacks to is larger than the server takes."""

    reason = "TOO_LARGE"

    def __init__(self, what: str, limit_bytes: int, setting: str = "") -> None:
        """`setting`: which one to change; empty when the limit is fixed."""
        whose = f"the limit of the setting {setting}" if setting else "which is the limit"
        description = f"the {what} is larger than {limit_bytes:,} bytes, {whose}"
        super().__init__(description, [Violation(what, description)], what=what, limit_bytes=limit_bytes)
