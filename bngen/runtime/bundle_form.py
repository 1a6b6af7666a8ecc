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
from bngen.runtime.bounds import check_calls, check_initializers, check_operands
from bngen.runtime.compiled_for import CompiledFor
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import Built, Signature
from bngen.runtime.steps import CopyStep, KernelStep, Operand, Step
from bngen.version import __version__

DATA, MANIFEST, LIBRARY = "bundle.json", artifact.MANIFEST, "kernels.so"
TEXTS = {"tir": ".tir.py", "ll": ".ll", "asm": ".s"}
"""Kinds of text, and how the names of their files end."""
FORMAT = 2
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
        symbol: of its kernel; ``""`` for a copy.
        operands: by number: they recur.
    """

    name: str
    symbol: str
    operands: tuple[int, ...]


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
        steps = tuple(
            _Step(
                s.name,
                s.symbol if isinstance(s, KernelStep) else "",
                tuple(numbers.setdefault(o, len(numbers)) for o in s.operands),
            )
            for s in built.steps
        )
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
    if written.symbol:
        return KernelStep(written.name, written.symbol, tuple(operands))
    if len(operands) != 2 or len({(o.shape, o.dtype) for o in operands}) != 1:
        raise PlainError(f"{written.name:.40} is no copy")
    return CopyStep(written.name, *operands)


def _check(form: Form) -> None:
    operands = form.operands
    if any(not 0 <= number < len(operands) for step in form.steps for number in step.operands):
        raise PlainError("a step has an operand that is not there")
    symbols = {*form.objects, *(s for texts in form.texts.values() for s in texts)}
    if not all(map(_SYMBOL.fullmatch, symbols)) or not form.texts.keys() <= TEXTS.keys():
        raise PlainError("a file has a name that no kernel has")
    if missing := {step.symbol for step in form.steps if step.symbol} - form.objects.keys():
        raise PlainError(f"there is no code of {min(missing):.80}")
    check_operands(form.signature, operands, form.nbytes)
    check_initializers(form.signature.state, form.initializers)
