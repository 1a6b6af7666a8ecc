"""Targets as users write them: text of flags, JSON, a dict, or what prints as one of these.

In: anything. Out: the options ``mcpu``, ``mattr`` and ``mtriple``, which nobody has checked against
what LLVM knows, or a `TargetError` of one line.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bngen.errors import TargetError

_OPTIONS = ("mcpu", "mattr", "mtriple")
#: Of a target; LLVM's longest list of features has a third of that.
_MOST_CHARACTERS = 8192
#: Characters of a value that a message repeats.
_LONGEST = 80
#: What TVM adds when it prints a target; says nothing about the code that we ask for.
_IGNORED_KEYS = ("tag", "keys", "host", "libs", "device", "model", "num-cores")


def options_of(spec: object) -> dict[str, Any]:
    """``mcpu``, ``mattr`` and ``mtriple`` of a target in any accepted form."""
    if spec is None:
        return {"mcpu": "native"}
    if isinstance(spec, Mapping):
        return _options_of_mapping(spec)
    if not isinstance(spec, str):
        # A `Target` prints as flags, one of TVM's as JSON; asking for its class would import TVM.
        spec = str(spec)
    text = spec.strip()
    if len(text) > _MOST_CHARACTERS:
        hint = 'write "llvm -mcpu=native"'
        raise TargetError(f"a target of {len(text)} characters, {shown(text)}", hint=hint)
    return _options_of_json(text) if text.startswith("{") else _options_of_flags(text)


def _options_of_json(text: str) -> dict[str, Any]:
    try:
        return _options_of_mapping(json.loads(text))
    # ValueError: no JSON, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise TargetError(
            f"target {shown(text)} is not valid JSON: {error}",
            hint='write it like {"kind": "llvm", "mcpu": "native"}',
        ) from None


def _options_of_mapping(spec: Mapping[str, Any]) -> dict[str, Any]:
    kind = spec.get("kind", "llvm")
    _check_kind(kind.get("kind") if isinstance(kind, Mapping) else kind)
    options = {}
    for key, value in spec.items():
        if not isinstance(key, str):
            raise _unknown_option(shown(key))
        if key in _OPTIONS:
            options[key] = check_value(key, value)
        elif key != "kind" and key not in _IGNORED_KEYS and not key.startswith("feature."):
            raise _unknown_option(key)
    return options


def _options_of_flags(text: str) -> dict[str, Any]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TargetError(f"cannot read target {shown(text)}: {error}") from None
    if not words:
        raise TargetError("the target is empty", hint='write "llvm -mcpu=native"')
    if not words[0].startswith("-"):
        _check_kind(words.pop(0))
    options: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in _OPTIONS:
            raise _unknown_option(word)
        value = value if equals else next(rest, "")
        if not value:
            what = f"target {shown(text)}: -{name} needs a value"
            raise TargetError(what, hint=f"write -{name}=...")
        options[name] = check_value(name, value)
    return options


def check_value(key: str, value: object) -> object:
    """A name, or for ``mattr`` names, of characters that can be printed."""
    several = key == "mattr" and isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    names = value if several else [value]
    # Neither a NUL nor half of a surrogate pair can be handed to LLVM.
    if not all(isinstance(n, str) and n and n.isprintable() for n in names):
        what = f"target option {key!r} cannot be {shown(value)}"
        raise TargetError(what, hint="write it as text")
    return value


def shown(value: object) -> str:
    """A value as a message repeats it: never long, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # An integer of thousands of digits, or lists too deep.
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _unknown_option(name: str) -> TargetError:
    bare = name.lstrip("-").partition("=")[0]
    near = difflib.get_close_matches(bare, _OPTIONS, 1)
    hint = f"did you mean -{near[0]}?" if near else "a target takes -mcpu, -mattr and -mtriple"
    return TargetError(f"unknown target option {shown(name)}", hint=hint)


def _check_kind(kind: object) -> None:
    if kind != "llvm":
        raise TargetError(
            f"unknown target kind {shown(kind)}: bngen emits CPU code through LLVM",
            hint='write "llvm -mcpu=native"',
        )


def split_attrs(attrs: str | Sequence[str]) -> dict[str, bool]:
    """``"+a,-b"`` to ``{"a": True, "b": False}``."""
    words = attrs.split(",") if isinstance(attrs, str) else list(attrs)
    found = {}
    for word in (w.strip() for w in words):
        if word[:1] not in ("+", "-") or len(word) < 2:
            raise TargetError(f"-mattr: cannot read {shown(word)}", hint="write -mattr=+a,-b")
        found[word[1:]] = word[0] == "+"
    return found
