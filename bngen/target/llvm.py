"""What LLVM knows of architectures, CPUs and features, and what it cannot do without.

In: names. Out: sets of features, or a `TargetError` with the nearest names. TVM, which has LLVM in
it, is imported when something is asked for.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any

from bngen.errors import TargetError
from bngen.runtime import host
from bngen.target.written import shown

#: What generated code cannot do without: 64-bit addresses, floats in registers as the platform's
#: calling convention has them. LLVM ends the process where one is missing, or emits objects that
#: cannot be linked with the platform's own.
_INDISPENSABLE = {
    "x86_64": ("64bit", "64bit-mode", "sse", "sse2"),
    "aarch64": ("fp-armv8", "neon"),
    "riscv64": ("64bit", "m", "f", "d"),
}
_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


def tvm_target(cpu: str | None, attrs: Iterable[str] = (), triple: str | None = None) -> Any:
    """A ``tvm.target.Target``."""
    import tvm

    config: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": cpu, "mattr": [*attrs]}
    return tvm.target.Target({key: value for key, value in config.items() if value})


@functools.cache
def features_of(cpu: str, attrs: tuple[str, ...], triple: str | None) -> frozenset[str]:
    """Everything LLVM enables for a CPU and some features, tuning hints included."""
    from tvm.target import codegen

    found = codegen.llvm_get_cpu_features(tvm_target(cpu, attrs, triple))
    return frozenset(map(str, found))


@functools.cache
def _llvm_cpus(triple: str | None) -> tuple[str, ...]:
    from tvm.target import codegen

    return tuple(sorted(map(str, codegen.llvm_get_cpu_archlist(tvm_target(None, (), triple)))))


@functools.cache
def _llvm_vocabulary(triple: str | None) -> frozenset[str]:
    """Every feature that some CPU of the architecture has."""
    known = host.known_features(architecture_of(triple)).keys()
    return frozenset(known).union(*(features_of(c, (), triple) for c in _llvm_cpus(triple)))


def check_triple(triple: str | None) -> str | None:
    """Refuses an architecture that LLVM was not built for; the machine's own triple is None."""
    if triple is None:
        return None
    from tvm.target import codegen

    if triple == str(codegen.llvm_get_system_triple()):
        return None
    known = sorted(map(str, codegen.llvm_get_targets()))
    if architecture_of(triple) not in known:
        near = difflib.get_close_matches(triple.split("-")[0], known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "write aarch64-linux-gnu"
        raise TargetError(f"LLVM knows no architecture of {shown(triple)}", hint=hint)
    if architecture_of(triple) not in (*_INDISPENSABLE, host.architecture()):
        raise TargetError(
            f"bngen generates no code for {architecture_of(triple)}",
            hint=f"for {', '.join(_INDISPENSABLE)} it does",
        )
    if triple.endswith(("x32", "ilp32")):
        raise TargetError(
            f"{shown(triple)} has addresses of 32 bits, and code of bngen needs 64",
            hint=f"write {architecture_of(triple)}-linux-gnu",
        )
    return triple


def check_cpu(cpu: str, triple: str | None) -> None:
    """Refuses a CPU that LLVM does not know."""
    known = _llvm_cpus(triple)
    if cpu in known:
        return
    near = difflib.get_close_matches(cpu, [*known, "native"], 4)
    hint = f"did you mean {' or '.join(near)}?" if near else "-mcpu=native is this machine"
    raise TargetError(f"LLVM knows no {architecture_of(triple)} CPU named {shown(cpu)}", hint=hint)


def check_attrs(attrs: Iterable[str], triple: str | None) -> None:
    """Refuses features that LLVM does not know."""
    table = host.known_features(architecture_of(triple))
    for name in attrs:
        # The small table first: the whole vocabulary means asking about each of LLVM's CPUs.
        if name in table or name in _llvm_vocabulary(triple):
            continue
        near = difflib.get_close_matches(name, _llvm_vocabulary(triple), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "leave it out"
        raise TargetError(f"-mattr: LLVM knows no feature {shown(name)} here", hint=hint)


def architecture_of(triple: str | None) -> str:
    """LLVM's name of a triple's architecture; None is this machine's."""
    if not triple:
        return host.architecture()
    first = triple.split("-")[0]
    return _ALIASES.get(first, first)


def native_cpu(triple: str | None) -> tuple[str, dict[str, bool]]:
    """The host's CPU by LLVM's name, and how its features differ from those of that name."""
    from tvm.target import codegen

    if triple is not None:
        raise TargetError(
            f"-mcpu=native is this machine's CPU, which is not {triple}",
            hint="name a CPU, or leave -mtriple out",
        )
    cpu, here = str(codegen.llvm_get_system_cpu()), host.features()
    if here is None:
        return cpu, {}
    named = features_of(cpu, (), triple) & host.known_features(host.architecture()).keys()
    return cpu, {name: name in here for name in named ^ here}


def check_indispensable(cpu: str, arch: str, features: frozenset[str]) -> None:
    """Refuses a CPU that lacks what generated code cannot do without."""
    missing = [name for name in _INDISPENSABLE.get(arch, ()) if name not in features]
    if missing:
        raise TargetError(
            f"{cpu} as asked for has no {', '.join(missing)}, which code for {arch} needs",
            hint=f"name a 64-bit CPU that has them, or -mattr={','.join(f'+{m}' for m in missing)}",
        )


def effective_attrs(cpu: str, wanted: Mapping[str, bool], triple: str | None) -> tuple[str, ...]:
    """The wanted features that make a difference, those switched on first.

    LLVM applies them one by one, and each drags along what it implies or what depends on it. With
    the minus signs last, what was switched off stays off.
    """
    ordered = [f"+{n}" for n in sorted(wanted) if wanted[n]]
    ordered += [f"-{n}" for n in sorted(wanted) if not wanted[n]]
    result = features_of(cpu, tuple(ordered), triple)
    for attr in list(ordered):
        without = [a for a in ordered if a != attr]
        if features_of(cpu, tuple(without), triple) == result:
            ordered = without
    return tuple(ordered)
