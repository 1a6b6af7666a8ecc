"""`Bundle`: what was compiled, as plain data and object code; as files, and back.

In: a `Built`, initializers, object code by symbol. Out: contents by file name, the same in any
process, in a folder, in the cache and in a pickle alike; and a `Bundle` of such files::

    bundle.json             all that a module follows, and the digest of each file below
    manifest.json           the same for people: signature, layouts, kernels, target
    kernels/<symbol>.o      object code
    kernels.so              the same, linked for a system like the one that compiled it
    tir/, ll/, asm/         texts by kernel, those that were asked for

What is read is taken on trust in nothing that could make a call reach beyond its memory: see
`bounds`. The code itself is another matter; whoever loads it must know where it comes from.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bngen.errors import BngenError, ToolchainError
from bngen.initializers import Initializer
from bngen.runtime import artifact, bundle_form
from bngen.runtime.bundle_form import (
    DATA,
    LIBRARY,
    MANIFEST,
    TEXTS,
    Contents,
    Form,
    OtherVersionError,
    object_file,
    text_file,
)
from bngen.runtime.compiled_for import CompiledFor
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import Built
from bngen.version import __version__

Fetch = Callable[[Sequence[str]], Sequence[bytes]]
"""Names of files -> their contents."""


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
    library: bytes | None = None
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
        target = dict(self.built.manifest["target"])
        return CompiledFor(**{**target, "features": tuple(target["features"])})

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


# --- files ------------------------------------------------------------------------------------


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
    form = Form.of(
        bundle.built, bundle.target, bundle.initializers, bundle.independent,
        Contents(bundle.objects, bundle.library, bundle.texts),
    )  # fmt: skip
    return {DATA: bundle_form.dumps(form), MANIFEST: shown.encode(), **code}


def read(fetch: Fetch) -> Bundle:
    """The bundle of files.

    Args:
        fetch: contents of files by name.

    Raises:
        PlainError: for what `files` has not made. The manifest is not read before it is asked for.
        OtherVersionError: for what another version has made.
    """
    (data,) = fetch([DATA])
    form = bundle_form.loads(data)
    digests = form.digests()
    names = [MANIFEST, *digests]
    contents = dict(zip(names, fetch(names), strict=True))
    for name, digest in digests.items():
        if bundle_form.digest(contents[name]) != digest:
            raise PlainError(f"{name} is not what was written")
    texts = {
        kind: {symbol: _text(contents[text_file(kind, symbol)]) for symbol in symbols}
        for kind, symbols in form.texts.items()
    }
    return Bundle(
        form.built(contents[MANIFEST]),
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
    def fetch(names: Sequence[str]) -> list[bytes]:
        if missing := [name for name in names if name not in contents]:
            raise PlainError(f"a pickled bundle has no file {missing[0]}")
        return [contents[name] for name in names]

    return read(fetch)
