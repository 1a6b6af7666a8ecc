"""A bundle's data as one document: all that a module follows, and a digest of each other file.

In: a `Built` and what goes with it. Out: a `Form`, and its JSON text; from a text the same again,
checked. The names of the files beside it are given here, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from bngen.errors import BngenError
from bngen.initializers import Initializer
from bngen.runtime import artifact, plain
from bngen.runtime.bounds import (
    check_calls,
    check_exchanges,
    check_initializers,
    check_operands,
)
from bngen.runtime.compiled_for import CompiledFor
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import Built, Signature
from bngen.runtime.steps import CopyStep, KernelStep, Operand, StartStep, Step, WaitStep
from bngen.version import __version__

DATA, MANIFEST, LIBRARY = "bundle.json", artifact.MANIFEST, "kernels.so"
TEXTS = {"tir": ".tir.py", "ll": ".ll", "asm": ".s"}
"""Kinds of text, and how the names of their files end."""
FORMAT = 4
"""Grows when a field changes its meaning."""
_SYMBOL = re.compile(r"\w{1,200}", re.ASCII)


class OtherVersionError(BngenError):
    """A bundle that another version of bngen or TVM has made."""


def object_file(symbol: str) -> str:
    """The name of the file with a kernel's object code."""
    return f"kernels/{symbol}.o"


def text_file(kind: str, symbol: str) -> str:
    """The name of the file with one of a kernel's texts."""
    return f"{kind}/{symbol}{TEXTS[kind]}"


def versions() -> tuple[str, str]:
    """What makes a bundle: kernels and the runtime that calls them belong together."""
    return __version__, metadata.version("apache-tvm")


@dataclass(frozen=True)
class Contents:
    """The files of a bundle.

    Attributes:
        objects: object files, by symbol.
        library: a shared library of them.
        texts: by kind and symbol.
    """

    objects: Mapping[str, bytes]
    library: bytes | None
    texts: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class _Step:
    """A `Step`, as it is written.

    Attributes:
        name: its name.
        kind: ``kernel``, ``copy``, ``start`` or ``wait``.
        symbol: of its kernel, or how a collective combines; else ``""``.
        group: of a collective; else ``""``.
        number: its count, or the step that started what is waited for; else 0.
        operands: by number: they recur.
        numbers: what a kernel's code takes after its operands.
    """

    name: str
    kind: str
    symbol: str
    group: str
    number: int
    operands: tuple[int, ...]
    numbers: tuple[int, ...] = ()

    @classmethod
    def of(cls, step: Step, numbers: dict[Operand, int]) -> _Step:
        """That of a step; operands that are new get numbers."""
        operands = tuple(numbers.setdefault(o, len(numbers)) for o in step.operands)
        match step:
            case KernelStep():
                return cls(step.name, "kernel", step.symbol, "", 0, operands, step.numbers)
            case StartStep():
                rest = step.combine, step.group, step.count
                return cls(step.name, "start", *rest, operands)
            case WaitStep():
                return cls(step.name, "wait", "", "", step.start, operands)
        return cls(step.name, "copy", "", "", 0, operands)


@dataclass(frozen=True)
class Form:
    """A bundle as it is written, but for its files.

    Attributes:
        made_by: see `versions`.
        initializers: of ``signature.state``, in its order.
        target: as in the manifest, which is long and seldom asked for.
        objects: SHA-256 of the object files, by symbol.
        texts: of the texts, by kind and symbol.
    """

    format: int
    made_by: tuple[str, str]
    signature: Signature
    operands: tuple[Operand, ...]
    steps: tuple[_Step, ...]
    nbytes: int
    target: CompiledFor
    initializers: tuple[Initializer, ...]
    independent: tuple[str, ...]
    objects: Mapping[str, str]
    library: str | None
    texts: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(
        cls,
        built: Built,
        target: CompiledFor,
        initializers: Mapping[str, Initializer],
        independent: tuple[str, ...],
        contents: Contents,
    ) -> Form:
        """That of a bundle.

        Args:
            built: what a module runs.
            target: what it was compiled for.
            initializers: by name.
            independent: see `Bundle`.
            contents: its files.
        """
        numbers: dict[Operand, int] = {}
        steps = tuple([_Step.of(step, numbers) for step in built.steps])
        return cls(
            FORMAT, versions(), built.signature, tuple(numbers), steps, built.nbytes, target,
            tuple(initializers[spec.name] for spec in built.signature.state),
            independent,
            {symbol: digest(content) for symbol, content in contents.objects.items()},
            None if contents.library is None else digest(contents.library),
            {
                kind: {symbol: digest(text.encode()) for symbol, text in texts.items()}
                for kind, texts in contents.texts.items()
            },
        )  # fmt: skip

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file but the manifest, by name."""
        found = {object_file(symbol): digest for symbol, digest in self.objects.items()}
        if self.library is not None:
            found[LIBRARY] = self.library
        for kind, texts in self.texts.items():
            found |= {text_file(kind, symbol): digest for symbol, digest in texts.items()}
        return found

    def built(self, manifest: bytes) -> Built:
        """What a module runs; the text of the manifest is not read before it is asked for."""
        operands = self.operands
        steps = tuple([_step(s, [operands[i] for i in s.operands]) for s in self.steps])
        check_calls(self.signature, steps)
        check_exchanges(self.signature, steps)
        known = {"target": self.target.described()}
        shown = plain.Later(manifest, known, without=("generator", "files"))
        return Built(self.signature, steps, self.nbytes, shown)


def digest(content: bytes) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(content).hexdigest()


def dumps(form: Form) -> bytes:
    """The document."""
    return plain.dumps(Form, form)


def loads(data: bytes) -> Form:
    """What a document holds, checked.

    Raises:
        PlainError: for what `dumps` has not written.
        OtherVersionError: for what another version has written.
    """
    try:
        form = plain.loads(Form, data)
    except PlainError:
        _check_maker(*_head(data))  # whose fields may be others
        raise
    _check_maker(form.format, form.made_by)
    _check(form)
    return form


def _head(data: bytes) -> tuple[Any, Any]:
    """Format and maker of what cannot be read as a whole, as far as that can be."""
    try:
        found = plain.loads(Mapping[str, Any], data)
    except PlainError:
        return FORMAT, versions()
    maker = found.get("made_by")
    return found.get("format"), tuple(maker) if isinstance(maker, list) else versions()


def _check_maker(number: Any, maker: Any) -> None:
    if number == FORMAT and maker == versions():
        return
    names = ["bngen {} with apache-tvm {}".format(*v) if len(v) == 2 else "something else"
             for v in (maker, versions())]  # fmt: skip
    raise OtherVersionError(
        f"made by {names[0]:.80} in format {number!r:.20}, and this is {names[1]}, which reads "
        f"format {FORMAT}",
        hint="build it again here",
    )


def _step(written: _Step, operands: list[Operand]) -> Step:
    name, given = written.name, tuple(operands)
    match written.kind:
        case "kernel":
            return KernelStep(name, written.symbol, given, written.numbers)
        case "start":
            return StartStep(name, written.group, written.symbol, written.number, given)
        case "wait":
            return WaitStep(name, written.number, given)
    if written.kind != "copy" or len(given) != 2 or len({(o.shape, o.dtype) for o in given}) != 1:
        raise PlainError(f"{name:.40} is no copy")
    return CopyStep(name, *given)


def _check(form: Form) -> None:
    operands = form.operands
    if any(not 0 <= number < len(operands) for step in form.steps for number in step.operands):
        raise PlainError("a step has an operand that is not there")
    if any(not 0 <= number < 2**62 for step in form.steps for number in step.numbers):
        raise PlainError("a kernel takes a number that none has")
    symbols = {*form.objects, *(s for texts in form.texts.values() for s in texts)}
    if not all(map(_SYMBOL.fullmatch, symbols)) or not form.texts.keys() <= TEXTS.keys():
        raise PlainError("a file has a name that no kernel has")
    if (
        missing := {step.symbol for step in form.steps if step.kind == "kernel"}
        - form.objects.keys()
    ):
        raise PlainError(f"there is no code of {min(missing):.80}")
    check_operands(form.signature, operands, form.nbytes)
    check_initializers(form.signature.state, form.initializers)
