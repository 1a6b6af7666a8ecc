"""Frozen dataclasses as JSON text and back: data that can run no code.

In: values made of dataclasses, tuples, mappings by name, frozen sets of names, numbers, text and
None, as annotations declare them. Out: text; and from a text the same values again. An instance is
written field by field under their names, a tuple of instances column by column. The reader takes
what the writer writes: each field of the declared type, none missing, none more. Annotations are
the only description of a class that there is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from bngen.errors import BngenError

T = TypeVar("T")
Reader = Callable[[Any], Any]
Writer = Callable[[Any], Any]

_ATOMS = (int, float, str, bool)
_NUMBERS = {int, float, bool}
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""The writer needs no escapes but for quotes and control characters."""


class PlainError(BngenError, ValueError):
    """A text that is not what `dumps` writes."""


def dumps(kind: Any, value: Any) -> bytes:
    """A value of an annotated type as JSON text."""
    data = _form(kind).write(value)
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def loads(kind: type[T], text: bytes) -> T:
    """The value of an annotated type that `dumps` has written.

    Raises:
        PlainError: saying what is wrong.
    """
    if _HALF_CHARACTER.search(text):
        raise PlainError("half a character")
    try:
        data = json.loads(text.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise PlainError("brackets too deep") from None
    except ValueError as error:
        raise PlainError(str(error)) from None
    return _form(kind).read(data)


class Later(Mapping[str, Any]):
    """What a text of `dumps` holds by name; it is not read before it is asked for.

    Args:
        text: of a mapping; `PlainError` is raised by the first use of one that is none.
        known: what it says under some of its names.
        without: names in the text that are not to be seen.
    """

    def __init__(self, text: bytes, known: Mapping[str, Any], without: Iterable[str] = ()):
        self._text, self._known, self._without = text, dict(known), frozenset(without)

    @functools.cached_property
    def _found(self) -> Mapping[str, Any]:
        found = loads(Mapping[str, Any], self._text)
        return {name: value for name, value in found.items() if name not in self._without}

    def __getitem__(self, name: str) -> Any:
        return self._known[name] if name in self._known else self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _refuse_constant(name: str) -> Any:
    raise PlainError(f"{name} is no number")


# --- forms ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Form:
    """How values of a type are written, to what ``json`` knows, and read, with the same checks."""

    write: Writer
    read: Reader


@functools.cache
def _form(kind: Any) -> _Form:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return _Form(_same, _same)
    if kind in _ATOMS:
        return _Form(_same, functools.partial(_exactly, kind))
    if dataclasses.is_dataclass(kind):
        return _fields(kind)
    if origin in (types.UnionType, typing.Union):
        return (
            _Form(_number_out, _number_in) if set(arguments) == _NUMBERS else _optional(arguments)
        )
    if origin is tuple and arguments[1:] != (...,):
        return _each(arguments)
    if origin is tuple:
        (item, _) = arguments
        return _columns(item) if dataclasses.is_dataclass(item) else _row(item)
    if origin is frozenset:
        names = _row(arguments[0])
        return _Form(sorted, lambda data: frozenset(names.read(data)))
    if origin is Mapping and arguments[0] is str:
        return _mapping(arguments[1])
    raise TypeError(f"no plain form of {kind}")


def _same(value: Any) -> Any:
    return value


def _exactly(kind: type, data: Any) -> Any:
    if type(data) is not kind:
        raise PlainError(f"{data!r:.60} is no {kind.__name__}")
    return data


def _number_out(value: float) -> int | float | str:
    """``int | float | bool``: what JSON has no number for (infinity, NaN) as text."""
    return value if math.isfinite(value) else repr(float(value))


def _number_in(data: Any) -> int | float | bool:
    if isinstance(data, str) and data in ("inf", "-inf", "nan"):
        return float(data)
    if type(data) not in _NUMBERS:
        raise PlainError(f"{data!r:.60} is no number")
    return data


def _fields(kind: type) -> _Form:
    """An instance: ``{"x": 1, "y": 2}``."""
    forms = _forms_of(kind)

    def read(data: Any) -> Any:
        _check_names(kind, forms, data)
        return kind(*[form.read(data[name]) for name, form in forms.items()])

    return _Form(
        lambda value: {name: form.write(getattr(value, name)) for name, form in forms.items()}, read
    )


def _columns(kind: type) -> _Form:
    """Instances: ``{"x": [1, 3], "y": [2, 4]}``, quicker to check than one after the other."""
    columns = {name: _row(hint) for name, hint in _hints_of(kind).items()}

    def read(data: Any) -> tuple:
        _check_names(kind, columns, data)
        read_columns = [form.read(data[name]) for name, form in columns.items()]
        if len(set(map(len, read_columns))) > 1:
            raise PlainError(f"columns of {kind.__name__} are of unequal length")
        return tuple([kind(*row) for row in zip(*read_columns, strict=True)])

    def write(rows: tuple) -> dict[str, list]:
        return {
            name: form.write([getattr(row, name) for row in rows]) for name, form in columns.items()
        }

    return _Form(write, read)


def _hints_of(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _forms_of(kind: type) -> dict[str, _Form]:
    return {name: _form(hint) for name, hint in _hints_of(kind).items()}


def _check_names(kind: type, forms: Mapping[str, _Form], data: Any) -> None:
    if _exactly(dict, data).keys() != forms.keys():
        raise PlainError(f"{', '.join(data):.60} are not the fields of {kind.__name__}")


def _optional(choices: tuple[Any, ...]) -> _Form:
    """``X | None``."""
    (other,) = (choice for choice in choices if choice is not types.NoneType)
    form = _form(other)
    return _Form(
        lambda value: None if value is None else form.write(value),
        lambda data: None if data is None else form.read(data),
    )


def _each(kinds: tuple[Any, ...]) -> _Form:
    """``tuple[X, Y]``."""
    forms = [_form(kind) for kind in kinds]

    def read(data: Any) -> tuple:
        if len(_exactly(list, data)) != len(forms):
            raise PlainError(f"{data!r:.60} are not {len(forms)} values")
        return tuple([form.read(item) for form, item in zip(forms, data, strict=True)])

    return _Form(lambda v: [form.write(i) for form, i in zip(forms, v, strict=True)], read)


def _row(kind: Any) -> _Form:
    """``tuple[X, ...]``."""
    form = _form(kind)
    if kind not in _ATOMS:
        return _Form(
            lambda value: [form.write(item) for item in value],
            lambda data: tuple([form.read(item) for item in _exactly(list, data)]),
        )
    only = {kind}

    def read(data: Any) -> tuple:
        if not only.issuperset(map(type, _exactly(list, data))):
            raise PlainError(f"{data!r:.60} are not all {kind.__name__}")
        return tuple(data)

    return _Form(list, read)


def _mapping(kind: Any) -> _Form:
    """``Mapping[str, X]``."""
    form = _form(kind)
    return _Form(
        lambda value: {name: form.write(item) for name, item in value.items()},
        lambda data: {name: form.read(item) for name, item in _exactly(dict, data).items()},
    )
