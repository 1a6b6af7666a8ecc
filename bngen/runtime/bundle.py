"""`Bundle`: what was compiled, as plain data and object code; as files, and back.

In: a `Built`, initializers, object code by symbol. Out: contents by file name, the same in any
process, in a folder, in the cache and in a pickle alike; and a `Bundle` of such files::

    bundle.json             all that a module follows, and the digest of each file below
    manifest.json           the same for people: signature, layouts, kernels, target
    kernels/<symbol>.o      object code
    kernels.so              the same, linked for a system like the one that compiled it
    tir/, ll/, asm/         texts by kernel, those that were asked for

What is read is taken on trust in nothing that could make a call reach beyond its memory: operands
lie within the arena or the slot they name, and every name is one that a call fills. The code itself
is another matter; whoever loads it must know where it comes from.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bngen.dtypes import DTYPES
from bngen.errors import BngenError, ToolchainError
from bngen.initializers import Initializer, misfit
from bngen.options import CHANNELS_LAST, MEMORY_FORMATS
from bngen.runtime import artifact, plain
from bngen.runtime.arguments import ArgSpec
from bngen.runtime.compiled_for import CompiledFor
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import BACKWARD, FORWARD, Built, Signature, input_slot
from bngen.runtime.steps import CopyStep, KernelStep, Operand, Step
from bngen.version import __version__

DATA, MANIFEST, LIBRARY = "bundle.json", artifact.MANIFEST, "kernels.so"
TEXTS = {"tir": ".tir.py", "ll": ".ll", "asm": ".s"}
"""Kinds of text, and how the names of their files end."""
Fetch = Callable[[Sequence[str]], Sequence[bytes]]
"""Names of files -> their contents."""


class OtherVersionError(BngenError):
    """A bundle that another version of bngen or TVM has made."""


@dataclass(frozen=True, repr=False)
class Bundle:
    """A compiled program: plain data and object code, for whatever target.

    `bngen.bundle` makes one, `bngen.load` makes it a module on a machine that can run it. It can be
    written to a folder and read again, pickled, and compared.

    Attributes:
        built: what a module runs.
        initializers: how `Module.init` fills parameters and buffers, by name.
        objects: object files by symbol, position-independent.
        library: the same linked, where the target's system is that of the machine that compiled
            it, and that machine has a C compiler.
        texts: by kind (``tir``, ``ll``, ``asm``) and symbol, the kinds that were asked for.
        independent: inputs that no output depends on, whose gradient is zero.
    """

    built: Built
    initializers: Mapping[str, Initializer]
    objects: Mapping[str, bytes]
    library: bytes | None = field(default=None)
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    independent: tuple[str, ...] = ()

    def __repr__(self) -> str:
        code = sum(map(len, self.objects.values()))
        return (
            f"Bundle({self.program}, for {self.target.cpu} {self.target.arch}, "
            f"{len(self.built.kernels)} kernels, {code / 2**20:.1f} MiB of code)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (files(self),)

    @property
    def program(self) -> str:
        """The program's name."""
        return self.built.signature.program

    @property
    def target(self) -> CompiledFor:
        """What it was compiled for."""
        return _compiled_for(self.built)

    def manifest(self) -> dict[str, Any]:
        """Signature, layouts, kernels with the sub-layers each holds, counts, target, imports."""
        return copy.deepcopy(dict(self.built.manifest))

    def emit(self, kind: str) -> dict[str, str]:
        """Texts by kernel: ``tir`` (scheduled TIR), ``ll`` (LLVM IR), ``asm``.

        Raises:
            BngenError: for a kind that is not in the bundle.
        """
        check_text(kind)
        if kind not in self.texts:
            raise BngenError(
                f"the bundle of {self.program} holds no {kind} texts",
                hint=f"bngen build --emit {kind}, or bngen.bundle(..., emit=[{kind!r}])",
            )
        return dict(self.texts[kind])

    def files(self) -> dict[str, bytes]:
        """The files that `save` writes, by name, the manifest laid out for people."""
        return files(self, readable=True)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder that ``bngen build`` writes: all of it or none of it.

        Args:
            folder: is made, with those above it; what an earlier build wrote there is replaced.

        Raises:
            ToolchainError: when it cannot be written, or holds a file that no build wrote.
        """
        with artifact.output_folder(Path(folder)) as new:
            artifact.write_files(new, self.files(), Path(folder))

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Bundle:
        """The bundle of a folder that `save` or ``bngen build`` wrote, on whatever machine.

        Raises:
            ToolchainError: for a folder that is damaged, or is none of those.
            OtherVersionError: for one of another version of bngen.
        """
        where = os.fspath(folder)
        try:
            found = read(functools.partial(artifact.read_files, Path(folder)))
            dict(found.built.manifest)
        except OtherVersionError as error:
            raise OtherVersionError(f"{where}: {error.what}", hint=error.hint) from None
        except PlainError as error:
            what = f"{where} cannot be loaded: {error}"
            raise ToolchainError(what, hint="build it again with bngen build") from None
        return found


def check_text(kind: str) -> None:
    """Raise for what is no kind of text."""
    if kind not in TEXTS:
        raise BngenError(f"unknown kind of text {kind!r:.60}", hint=f"one of {', '.join(TEXTS)}")


def _compiled_for(built: Built) -> CompiledFor:
    target = dict(built.manifest["target"])
    return CompiledFor(**{**target, "features": tuple(target["features"])})


# --- writing ----------------------------------------------------------------------------------


def files(bundle: Bundle, *, readable: bool = False) -> dict[str, bytes]:
    """A bundle's files by name.

    Args:
        bundle: the bundle.
        readable: whether the manifest is laid out for people.
    """
    code = {object_file(symbol): content for symbol, content in bundle.objects.items()}
    if bundle.library is not None:
        code[LIBRARY] = bundle.library
    for kind, texts in bundle.texts.items():
        code |= {text_file(kind, symbol): text.encode() for symbol, text in texts.items()}
    manifest = {
        "generator": f"bngen {__version__}",
        **bundle.built.manifest,
        "files": sorted([DATA, *code]),
    }
    layout = {"indent": 2} if readable else {"separators": (",", ":")}
    shown = json.dumps(manifest, ensure_ascii=False, allow_nan=False, **layout) + "\n"
    return {DATA: _dumps(bundle), MANIFEST: shown.encode(), **code}


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
class _Form:
    """A `Bundle` as it is written.

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


_FORMAT = 2
"""Grows when a field changes its meaning."""
_SYMBOL = re.compile(r"\w{1,200}", re.ASCII)


def _dumps(bundle: Bundle) -> bytes:
    built, signature = bundle.built, bundle.built.signature
    numbers: dict[Operand, int] = {}
    steps = tuple(
        _Step(
            s.name,
            s.symbol if isinstance(s, KernelStep) else "",
            tuple(numbers.setdefault(o, len(numbers)) for o in s.operands),
        )
        for s in built.steps
    )
    form = _Form(
        _FORMAT, versions(), signature, tuple(numbers), steps, built.nbytes, bundle.target,
        tuple(bundle.initializers[spec.name] for spec in signature.state),
        bundle.independent,
        {symbol: _digest(content) for symbol, content in bundle.objects.items()},
        None if bundle.library is None else _digest(bundle.library),
        {
            kind: {symbol: _digest(text.encode()) for symbol, text in texts.items()}
            for kind, texts in bundle.texts.items()
        },
    )  # fmt: skip
    return plain.dumps(_Form, form)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- reading ----------------------------------------------------------------------------------


def read(fetch: Fetch) -> Bundle:
    """The bundle of files.

    Args:
        fetch: contents of files by name.

    Raises:
        PlainError: for what `files` has not made. The manifest is not read before it is asked for.
        OtherVersionError: for what another version has made.
    """
    (data,) = fetch([DATA])
    form = _loads(data)
    digests = _digests(form)
    names = [MANIFEST, *digests]
    contents = dict(zip(names, fetch(names), strict=True))
    for name, digest in digests.items():
        if _digest(contents[name]) != digest:
            raise PlainError(f"{name} is not what was written")
    texts = {
        kind: {symbol: _text(contents[text_file(kind, symbol)]) for symbol in symbols}
        for kind, symbols in form.texts.items()
    }
    return Bundle(
        _built(form, contents[MANIFEST]),
        {s.name: i for s, i in zip(form.signature.state, form.initializers, strict=True)},
        {symbol: contents[object_file(symbol)] for symbol in form.objects},
        None if form.library is None else contents[LIBRARY],
        texts,
        form.independent,
    )


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise PlainError(f"a text that is none: {error}") from None


def _unpickled(contents: Mapping[str, bytes]) -> Bundle:
    return read(lambda names: [contents[name] for name in names])


def _loads(data: bytes) -> _Form:
    try:
        form = plain.loads(_Form, data)
    except PlainError:
        _check_maker(*_head(data))  # whose fields may be others
        raise
    _check_maker(form.format, form.made_by)
    _check_form(form)
    return form


def _head(data: bytes) -> tuple[Any, Any]:
    """Format and maker of what cannot be read as a whole, as far as that can be."""
    try:
        found = plain.loads(Mapping[str, Any], data)
    except PlainError:
        return _FORMAT, versions()
    maker = found.get("made_by")
    return found.get("format"), tuple(maker) if isinstance(maker, list) else versions()


def _check_maker(number: Any, maker: Any) -> None:
    if number == _FORMAT and maker == versions():
        return
    names = ["bngen {} with apache-tvm {}".format(*v) if len(v) == 2 else "something else"
             for v in (maker, versions())]  # fmt: skip
    raise OtherVersionError(
        f"made by {names[0]:.80} in format {number!r:.20}, and this is {names[1]}, which reads "
        f"format {_FORMAT}",
        hint="build it again here",
    )


def _digests(form: _Form) -> dict[str, str]:
    """SHA-256 of each file but the manifest, by name."""
    found = {object_file(symbol): digest for symbol, digest in form.objects.items()}
    if form.library is not None:
        found[LIBRARY] = form.library
    for kind, texts in form.texts.items():
        found |= {text_file(kind, symbol): digest for symbol, digest in texts.items()}
    return found


def _built(form: _Form, manifest: bytes) -> Built:
    operands = form.operands
    steps = tuple([_step(s, [operands[i] for i in s.operands]) for s in form.steps])
    known = {"target": form.target.described()}
    _check_calls(form.signature, steps)
    shown = plain.Later(manifest, known, without=("generator", "files"))
    return Built(form.signature, steps, form.nbytes, shown)


def _step(written: _Step, operands: list[Operand]) -> Step:
    if written.symbol:
        return KernelStep(written.name, written.symbol, tuple(operands))
    if len(operands) != 2 or len({(o.shape, o.dtype) for o in operands}) != 1:
        raise PlainError(f"{written.name:.40} is no copy")
    return CopyStep(written.name, *operands)


# --- what a reader may rely on ----------------------------------------------------------------


def _check_form(form: _Form) -> None:
    operands = form.operands
    if any(not 0 <= number < len(operands) for step in form.steps for number in step.operands):
        raise PlainError("a step has an operand that is not there")
    symbols = {*form.objects, *(s for texts in form.texts.values() for s in texts)}
    if not all(map(_SYMBOL.fullmatch, symbols)) or not form.texts.keys() <= TEXTS.keys():
        raise PlainError("a file has a name that no kernel has")
    if missing := {step.symbol for step in form.steps if step.symbol} - form.objects.keys():
        raise PlainError(f"there is no code of {min(missing):.80}")
    _check(form.signature, operands, form.nbytes)
    _check_initializers(form.signature.state, form.initializers)


def _check_initializers(state: Sequence[ArgSpec], initializers: Sequence[Initializer]) -> None:
    if len(state) != len(initializers):
        raise PlainError("initializers that are not those of the state")
    for spec, found in zip(state, initializers, strict=True):
        if wrong := misfit(found.name, found.numbers, spec.shape):
            raise PlainError(f"{spec.name}: {found.name!r:.40} {wrong}")
        if found.name == "constant":
            try:
                np.full((), found.numbers[0], spec.dtype)
            except (OverflowError, ValueError) as error:
                raise PlainError(f"{spec.name}: {error}") from None


def _check(signature: Signature, operands: Iterable[Operand], arena: int) -> None:
    given = (*signature.arguments, *signature.state, *signature.cotangents)
    results = (*signature.outputs, *signature.gradients)
    for spec in (*given, *results):
        last = spec.memory_format == CHANNELS_LAST
        if spec.memory_format not in MEMORY_FORMATS or (last and len(spec.shape) != 4):
            raise PlainError(f"{spec.name!r} is {spec.memory_format!r:.40} of shape {spec.shape}")
    inputs = {input_slot(spec.name): _nbytes(spec.shape, spec.dtype) for spec in given}
    slots: dict[str, int] = {}
    for spec in (*signature.outputs, *signature.gradients):
        end = _end(spec.offset, spec.shape, spec.dtype)
        slots[spec.slot] = max(slots.get(spec.slot, 0), end)
    if not slots.keys().isdisjoint(inputs):
        raise PlainError("results in the memory of an input")
    sizes: dict[str | None, int] = {**inputs, **slots, None: arena}
    for operand in operands:
        if _end(operand.offset, operand.shape, operand.dtype) > sizes.get(operand.slot, -1):
            raise PlainError(f"{operand} lies outside of its memory")
    for check in signature.labels:
        if input_slot(check.name) not in inputs:
            raise PlainError(f"there is no input {check.name!r}")
    if arena < 0:
        raise PlainError(f"an arena of {arena} bytes")


def _check_calls(signature: Signature, steps: Sequence[Step]) -> None:
    """Each step is in one call, and reads nothing that its call is not given."""
    ends = [0, *(call.stop for call in signature.calls)]
    names = tuple(call.name for call in signature.calls)
    starts = [call.start for call in signature.calls]
    if names not in ((FORWARD,), (FORWARD, BACKWARD)) or starts != ends[:-1]:
        raise PlainError(f"calls {', '.join(names):.60} one after the other are not all steps")
    if ends[-1] != len(steps) or ends != sorted(ends):
        raise PlainError(f"calls end with steps {ends[1:]} of {len(steps)}")
    arguments = [spec.name for spec in signature.arguments]
    state = [spec.name for spec in signature.state]
    cotangents = [spec.name for spec in signature.cotangents]
    comes_with = {
        FORWARD: (arguments, signature.outputs),
        BACKWARD: (cotangents, signature.gradients),
    }
    for call in signature.calls:
        given, results = comes_with[call.name]
        kept = state if call.name == FORWARD else call.reads
        if not {*arguments, *state}.issuperset(call.reads):
            raise PlainError(f"{call.name} reads what is neither an argument nor held")
        slots = {None, *map(input_slot, (*given, *kept)), *(spec.slot for spec in results)}
        for step in steps[call.start : call.stop]:
            if any(operand.slot not in slots for operand in step.operands):
                raise PlainError(f"{step.name:.40} reads what {call.name} is not given")


def _end(offset: int, shape: tuple[int, ...], dtype: str) -> int:
    if offset < 0:
        raise PlainError(f"offset {offset}")
    return offset + _nbytes(shape, dtype)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    if shape and min(shape) < 0:
        raise PlainError(f"shape {shape}")
    return math.prod(shape) * _itemsize(dtype)


def _itemsize(dtype: str) -> int:
    if dtype not in DTYPES:
        raise PlainError(f"{dtype!r:.40} is no element type")
    return DTYPES[dtype].nbytes
