"""certificates.parquet: the records of a journal as a table, one row a record."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fvit.certificates.record import Certificate
from fvit.errors import FvitError
from fvit.extras import require
from fvit.runtime.pictures import written_whole

NAME = "certificates.parquet"

GROUP = 1000
"""Records that are in memory at once, and in a row group."""

Column = tuple[tuple[str, ...], Any]
"""The way to a column's value in a record, and its Arrow type."""


def pyarrow() -> Any:
    """pyarrow; raises MissingExtra where it is not installed."""
    require("pyarrow.parquet", extra="parquet", purpose="--format parquet")
    return require("pyarrow", extra="parquet", purpose="--format parquet")


def write_parquet(certificates: Iterable[Certificate], file: Path) -> None:
    """Write records to a file, whole or not at all.

    A column is a field of docs/record.md, called as there with "_" for "."; a field that a record does not
    have is null. Raises FvitError where the file cannot be written, and what reading the records raises.
    """
    arrow = pyarrow()
    found = list(columns(Certificate))
    schema = arrow.schema([("_".join(way), kind) for way, kind in found])
    records = (_row(certificate.to_dict(), found) for certificate in certificates)
    try:
        with (
            written_whole(file) as part,
            part.open("wb") as sink,
            arrow.parquet.ParquetWriter(sink, schema, compression="zstd") as writer,
        ):
            while rows := list(itertools.islice(records, GROUP)):
                writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
    except OSError as error:
        raise FvitError(f"cannot write {file}: {error.strerror}") from error


def columns(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[Column]:
    """The columns of a record, from the types of its fields; a part of it gives each of its own."""
    for name, field in model.model_fields.items():
        way, kind = (*before, field.alias or name), _without_none(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from columns(kind, way)
        else:
            yield way, _arrow(kind, field.metadata)


def _row(record: dict[str, Any], found: list[Column]) -> dict[str, Any]:
    row = {}
    for way, _ in found:
        value: Any = record
        for name in way:
            value = None if value is None else value.get(name)
        if isinstance(value, dict):
            value = list(value.items())
        elif isinstance(value, str):  # a file's name may hold bytes that are no UTF-8
            value = value.encode(errors="backslashreplace").decode()
        row["_".join(way)] = value
    return row


def _arrow(kind: Any, limits: Iterable[Any] = ()) -> Any:
    """The Arrow type of what pydantic has under an annotation."""
    arrow, origin, inner = pyarrow(), get_origin(kind), get_args(kind)
    if origin is Annotated:
        of_fields = [each.metadata if isinstance(each, FieldInfo) else [each] for each in inner[1:]]
        return _arrow(_without_none(inner[0]), list(itertools.chain(limits, *of_fields)))
    if origin is tuple:
        return arrow.list_(_arrow(inner[0]))
    if origin is dict:
        return arrow.map_(arrow.string(), _arrow(inner[1]))
    if origin is Literal:
        return arrow.string()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return arrow.struct(
            [
                (field.alias or name, _arrow(_without_none(field.annotation), field.metadata))
                for name, field in kind.model_fields.items()
            ]
        )
    if kind is int:
        return arrow.uint64() if _most(limits) >= 2**63 else arrow.int64()
    return {float: arrow.float64(), bool: arrow.bool_(), str: arrow.string()}[kind]


def _most(limits: Iterable[Any]) -> int:
    return max((each.lt - 1 for each in limits if hasattr(each, "lt")), default=0)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(kind) if each is not types.NoneType)
    return kind
