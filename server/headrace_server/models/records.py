"""The registry's rows: every statement on the tables of models, versions and aliases.

Blocks: everything here is meant for a thread, or `run_sync`.
"""

import json
from collections.abc import Callable, Iterable
from datetime import datetime

from sqlalchemy import Connection, Row, delete, insert, select, update

from headrace_server.database.tables import model_aliases, model_versions, models
from headrace_server.models.lines import Line
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import Model, ModelVersion, NewVersion


def find_origin(connection: Connection, origin: str) -> tuple[ModelVersion, str] | None:
    """The version with this origin, and the digest of that origin."""
    row = connection.execute(select(model_versions).where(model_versions.c.origin == origin)).one_or_none()
    return (_version(row), row.origin_digest) if row is not None else None


def newest_with_origin(connection: Connection, model: str, prefix: str) -> tuple[ModelVersion, str] | None:
    """The newest version of a model whose origin begins so, and the digest of that origin."""
    of_model = model_versions.c.model == model
    query = (
        select(model_versions)
        .where(of_model, model_versions.c.origin.startswith(prefix, autoescape=True))
        .order_by(model_versions.c.version.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return (_version(row), row.origin_digest) if row is not None else None


def add_version(
    connection: Connection, new: NewVersion, origin: str | None, origin_digest: str, now: datetime
) -> ModelVersion:
    """Number a version and add it; make its model if it is the first.

    Raises IntegrityError when another server did the same meanwhile; the transaction may be tried again.
    """
    latest = _lock(connection, new.model)
    number = 1 if latest is None else latest + 1
    if latest is None:
        connection.execute(insert(models).values(id=new.model, latest_version=number, created_at=now))
    else:
        connection.execute(update(models).where(models.c.id == new.model).values(latest_version=number))
    connection.execute(
        insert(model_versions).values(
            model=new.model,
            version=number,
            origin=origin,
            origin_digest=origin_digest,
            body=json.loads(new.model_dump_json()),
            created_at=now,
        )
    )
    return ModelVersion(**dict(new), version=number, created_at=now)


def read_version(connection: Connection, model: str, number: int) -> ModelVersion | None:
    """One version."""
    query = select(model_versions).where(model_versions.c.model == model, model_versions.c.version == number)
    row = connection.execute(query).one_or_none()
    return _version(row) if row is not None else None


def read_versions(connection: Connection, model: str, before: int | None, limit: int) -> list[ModelVersion]:
    """Versions of a model, newest first, from the one before `before`."""
    query = select(model_versions).where(model_versions.c.model == model)
    if before is not None:
        query = query.where(model_versions.c.version < before)
    rows = connection.execute(query.order_by(model_versions.c.version.desc()).limit(limit))
    return [_version(row) for row in rows]


def read_line(connection: Connection, model: str) -> Line | None:
    """The newest version and the aliases of a model."""
    found = read_model(connection, model)
    return Line(found.latest_version, found.aliases, found.serving) if found is not None else None


def read_model(connection: Connection, model: str) -> Model | None:
    """One model."""
    rows = connection.execute(select(models).where(models.c.id == model)).all()
    return (_with_aliases(connection, rows))[0] if rows else None


def read_models(connection: Connection, after: str | None, limit: int) -> list[Model]:
    """Models by name, from the one after `after`."""
    query = select(models).order_by(models.c.id).limit(limit)
    if after is not None:
        query = query.where(models.c.id > after)
    return _with_aliases(connection, connection.execute(query).all())


def put_alias(connection: Connection, model: str, alias: str, number: int, now: datetime) -> None:
    """Point an alias to a version."""
    _lock(connection, model)
    connection.execute(_alias(model, alias))
    connection.execute(insert(model_aliases).values(model=model, alias=alias, version=number, assigned_at=now))


def change_serving(connection: Connection, model: str, change: Callable[[ServingOptions], ServingOptions]) -> bool:
    """Replace the serving options of a model by what `change` makes of them; False if there is no such model."""
    if _lock(connection, model) is None:
        return False
    stored = connection.execute(select(models.c.serving).where(models.c.id == model)).scalar_one()
    changed = change(ServingOptions.model_validate(stored or {})).model_dump(mode="json")
    connection.execute(update(models).where(models.c.id == model).values(serving=changed))
    return True


def drop_alias(connection: Connection, model: str, alias: str) -> bool:
    """Take an alias away; False if there was none."""
    return connection.execute(_alias(model, alias)).rowcount > 0


def referenced_keys(connection: Connection) -> set[str]:
    """The key of every artifact of every version."""
    bodies = connection.scalars(select(model_versions.c.body))
    return {artifact["key"] for body in bodies for artifact in body["artifacts"]}


def _lock(connection: Connection, model: str) -> int | None:
    """The number of the newest version, with the model's row locked where the database locks rows."""
    query = select(models.c.latest_version).where(models.c.id == model).with_for_update()
    latest: int | None = connection.execute(query).scalar_one_or_none()
    return latest


def _with_aliases(connection: Connection, rows: Iterable[Row[tuple[object, ...]]]) -> list[Model]:
    rows = list(rows)
    aliases: dict[str, dict[str, int]] = {row.id: {} for row in rows}
    query = select(model_aliases).where(model_aliases.c.model.in_(aliases)).order_by(model_aliases.c.alias)
    for row in connection.execute(query):
        aliases[row.model][row.alias] = row.version
    return [
        Model(
            id=row.id,
            latest_version=row.latest_version,
            aliases=aliases[row.id],
            created_at=row.created_at,
            serving=ServingOptions.model_validate(row.serving or {}),
        )
        for row in rows
    ]


def _alias(model: str, alias: str):  # type: ignore[no-untyped-def]
    return delete(model_aliases).where(model_aliases.c.model == model, model_aliases.c.alias == alias)


def _version(row: Row[tuple[object, ...]]) -> ModelVersion:
    return ModelVersion.model_validate({**row.body, "version": row.version, "created_at": row.created_at})
