"""The CPU that code is generated for: from ``"llvm -mcpu=native"`` to lanes, registers and caches.

In: a target as users write it (text, flags, JSON, a dict, a TVM target). Out: a frozen `Target`
that says what a schedule must know. This module does not know what a schedule is.

``native`` becomes the name LLVM gives this machine *and* the difference between that CPU and what
the machine really offers: a virtual machine may mask features of the CPU it names (using them
would be an illegal instruction), or offer more than the model number lets LLVM guess.

TVM takes 4 s to import where PyTorch is installed, so it is imported by `Target.parse` and
`Target.tvm` only.
"""

from __future__ import annotations

import difflib
import functools
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bngen.errors import TargetError
from bngen.runtime import host
from bngen.runtime.compiled_for import CompiledFor

_OPTIONS = ("mcpu", "mattr", "mtriple")
#: Of a target; LLVM's longest list of features has a third of that.
_MOST_CHARACTERS = 8192
#: Characters of a value that a message repeats.
_LONGEST = 80
#: What TVM adds when it prints a target; says nothing about the code that we ask for.
_IGNORED_KEYS = ("tag", "keys", "host", "libs", "device", "model", "num-cores")

_PSABI_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}),
    ("x86-64-v2", {"cx16", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"}),
    ("x86-64", {"sse2"}),
)
#: Bytes of cache to count on where the machine is not at hand: the least that CPUs of a level have.
_TYPICAL_CACHES = {
    "x86-64-v4": host.Caches(32 << 10, 1 << 20, 1408 << 10),
    "x86-64-v3": host.Caches(32 << 10, 256 << 10, 2 << 20),
    "aarch64": host.Caches(64 << 10, 1 << 20, 1 << 20),
}
_SMALLEST_CACHES = host.Caches(32 << 10, 256 << 10, 1 << 20)
#: What generated code cannot do without: 64-bit addresses, floats in registers as the platform's
#: calling convention has them. LLVM ends the process where one is missing, or emits objects that
#: cannot be linked with the platform's own.
_INDISPENSABLE = {
    "x86_64": ("64bit", "64bit-mode", "sse", "sse2"),
    "aarch64": ("fp-armv8", "neon"),
    "riscv64": ("64bit", "m", "f", "d"),
}
_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}
_SYSTEMS = ("linux", "darwin", "macos", "windows", "freebsd")


@dataclass(frozen=True)
class Target:
    """A CPU as the schedule generator and LLVM need to see it; made by `Target.parse`.

    Attributes:
        cpu: LLVM's name of the CPU, never ``native``.
        attrs: features switched on, then those switched off, relative to that CPU: ``+a``, ``-b``.
        triple: LLVM target triple if another than this machine's was asked for.
        arch: architecture, ``x86_64`` or ``aarch64``.
        psabi: x86-64 micro-architecture level (``x86-64-v4`` ...), else the architecture.
        lanes: float32 lanes of the widest vector worth using.
        vector_registers: how many of them there are.
        fma: whether multiply and add are one instruction. LLVM contracts a separate multiplication
            and addition of a scheduled kernel by itself; no flag is needed.
        l1: bytes of level-1 data cache of one core.
        l2: bytes of level-2 cache of one core.
        l3: one core's share of the level-3 cache, in bytes.
        threads: CPUs this process may use, the default number of threads.
        features: everything LLVM enables, tuning hints included.
        kind: always ``llvm``.
    """

    cpu: str
    attrs: tuple[str, ...]
    triple: str | None
    arch: str
    psabi: str
    lanes: int
    vector_registers: int
    fma: bool
    l1: int
    l2: int
    l3: int
    threads: int
    features: frozenset[str] = field(compare=False, repr=False)
    kind: str = "llvm"

    @classmethod
    def parse(
        cls,
        spec: str | Mapping[str, Any] | Target | None = None,
        *,
        mcpu: str | None = None,
        mattr: str | Sequence[str] = (),
    ) -> Target:
        """Reads a target in any of the forms that users write it in.

        Args:
            spec: ``"llvm -mcpu=native"``, ``"-mcpu=x86-64-v3"``, JSON text, a dict such as
                ``{"kind": "llvm", "mcpu": "znver4"}``, a `Target`, a TVM target, or None for this
                machine. Text without ``-mcpu`` means LLVM's baseline, as it does in TVM.
            mcpu: overrides the CPU of `spec`.
            mattr: further features, as ``"+a,-b"`` or a sequence; they override those of `spec`.

        Returns:
            The target with everything about it resolved.

        Raises:
            TargetError: for what LLVM does not know, with the nearest names.
        """
        options = _options(spec)
        given = {"mcpu": mcpu or None, "mattr": mattr or None}
        for key, value in given.items():
            if value is not None:
                _check_value(key, value)
        cpu = mcpu or options.get("mcpu") or "generic"
        triple = _check_triple(options.get("mtriple"))
        attrs = _split_attrs(options.get("mattr", ())) | _split_attrs(mattr or ())
        if cpu == "native":
            cpu, native_attrs = _native(triple)
            attrs = native_attrs | attrs
        _check_cpu(cpu, triple)
        _check_attrs(attrs, triple)
        return _describe(cpu, attrs, triple)

    def __str__(self) -> str:
        """The canonical text; it parses back to an equal target."""
        flags = [self.kind]
        if self.triple:
            flags.append(f"-mtriple={self.triple}")
        flags.append(f"-mcpu={self.cpu}")
        if self.attrs:
            flags.append(f"-mattr={','.join(self.attrs)}")
        return " ".join(flags)

    def tvm(self) -> Any:
        """This target as a ``tvm.target.Target``."""
        return _tvm_target(self.cpu, self.attrs, self.triple)

    def required_features(self) -> tuple[str, ...]:
        """The instruction-set extensions that code for this target may use, for a manifest."""
        return tuple(sorted(self.features & host.known_features(self.arch).keys()))

    def missing_here(self) -> tuple[str, ...]:
        """What this machine lacks to run code for this target; empty if it can."""
        return host.missing_features(self.arch, self.features)

    def runs_here(self) -> bool:
        """Whether this machine can run code for this target without an illegal instruction."""
        return not self.missing_here()

    def check_runs_here(self) -> None:
        """Refuses to go on where the next step is to run code that this machine cannot run.

        Raises:
            TargetError: names what the machine lacks.
        """
        if missing := self.missing_here():
            raise TargetError(
                f"code for {self.cpu} needs what this machine lacks: {', '.join(missing)}",
                hint="use -mcpu=native here, or such a CPU",
            )

    def compiled_for(self) -> CompiledFor:
        """What a machine has to be to run code for this target."""
        return CompiledFor(
            text=str(self),
            cpu=self.cpu,
            lanes=self.lanes,
            arch=self.arch,
            system=self.system,
            features=self.required_features(),
        )

    @property
    def system(self) -> str:
        """Operating system that objects are for, as `host.system` names it."""
        words = (self.triple or "").split("-")[1:]
        named = [name for name in _SYSTEMS for word in words if word.startswith(name)]
        return {"macos": "darwin"}.get(named[0], named[0]) if named else host.system()

    def loads_here(self) -> bool:
        """Whether this machine's loader takes objects for this target, be its CPU what it may."""
        return (self.arch, self.system) == (host.architecture(), host.system())


# --- reading what users write -----------------------------------------------------------------


def _options(spec: object) -> dict[str, Any]:
    """``mcpu``, ``mattr`` and ``mtriple`` of a target in any accepted form."""
    if spec is None:
        return {"mcpu": "native"}
    if isinstance(spec, Target):
        return _options_of_flags(str(spec))
    if isinstance(spec, Mapping):
        return _options_of_mapping(spec)
    if not isinstance(spec, str):
        # A TVM target prints as JSON; asking for its class would import TVM.
        spec = str(spec)
    text = spec.strip()
    if len(text) > _MOST_CHARACTERS:
        hint = 'write "llvm -mcpu=native"'
        raise TargetError(f"a target of {len(text)} characters, {_shown(text)}", hint=hint)
    return _options_of_json(text) if text.startswith("{") else _options_of_flags(text)


def _options_of_json(text: str) -> dict[str, Any]:
    try:
        return _options_of_mapping(json.loads(text))
    # ValueError: no JSON, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise TargetError(
            f"target {_shown(text)} is not valid JSON: {error}",
            hint='write it like {"kind": "llvm", "mcpu": "native"}',
        ) from None


def _options_of_mapping(spec: Mapping[str, Any]) -> dict[str, Any]:
    kind = spec.get("kind", "llvm")
    _check_kind(kind.get("kind") if isinstance(kind, Mapping) else kind)
    options = {}
    for key, value in spec.items():
        if not isinstance(key, str):
            raise _unknown_option(_shown(key))
        if key in _OPTIONS:
            options[key] = _check_value(key, value)
        elif key != "kind" and key not in _IGNORED_KEYS and not key.startswith("feature."):
            raise _unknown_option(key)
    return options


def _options_of_flags(text: str) -> dict[str, Any]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TargetError(f"cannot read target {_shown(text)}: {error}") from None
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
            what = f"target {_shown(text)}: -{name} needs a value"
            raise TargetError(what, hint=f"write -{name}=...")
        options[name] = _check_value(name, value)
    return options


def _check_value(key: str, value: object) -> object:
    """A name, or for ``mattr`` names, of characters that can be printed."""
    several = key == "mattr" and isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    names = value if several else [value]
    # Neither a NUL nor half of a surrogate pair can be handed to LLVM.
    if not all(isinstance(n, str) and n and n.isprintable() for n in names):
        what = f"target option {key!r} cannot be {_shown(value)}"
        raise TargetError(what, hint="write it as text")
    return value


def _shown(value: object) -> str:
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
    return TargetError(f"unknown target option {_shown(name)}", hint=hint)


def _check_kind(kind: object) -> None:
    if kind != "llvm":
        raise TargetError(
            f"unknown target kind {_shown(kind)}: bngen emits CPU code through LLVM",
            hint='write "llvm -mcpu=native"',
        )


def _split_attrs(attrs: str | Sequence[str]) -> dict[str, bool]:
    """``"+a,-b"`` to ``{"a": True, "b": False}``."""
    words = attrs.split(",") if isinstance(attrs, str) else list(attrs)
    found = {}
    for word in (w.strip() for w in words):
        if word[:1] not in ("+", "-") or len(word) < 2:
            raise TargetError(f"-mattr: cannot read {_shown(word)}", hint="write -mattr=+a,-b")
        found[word[1:]] = word[0] == "+"
    return found


# --- asking LLVM ------------------------------------------------------------------------------


def _tvm_target(cpu: str | None, attrs: Iterable[str] = (), triple: str | None = None) -> Any:
    import tvm

    config: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": cpu, "mattr": [*attrs]}
    return tvm.target.Target({key: value for key, value in config.items() if value})


@functools.cache
def _llvm_features(cpu: str, attrs: tuple[str, ...], triple: str | None) -> frozenset[str]:
    from tvm.target import codegen

    found = codegen.llvm_get_cpu_features(_tvm_target(cpu, attrs, triple))
    return frozenset(map(str, found))


@functools.cache
def _llvm_cpus(triple: str | None) -> tuple[str, ...]:
    from tvm.target import codegen

    return tuple(sorted(map(str, codegen.llvm_get_cpu_archlist(_tvm_target(None, (), triple)))))


@functools.cache
def _llvm_vocabulary(triple: str | None) -> frozenset[str]:
    """Every feature that some CPU of the architecture has."""
    known = host.known_features(_arch(triple)).keys()
    return frozenset(known).union(*(_llvm_features(c, (), triple) for c in _llvm_cpus(triple)))


def _check_triple(triple: str | None) -> str | None:
    """Refuses an architecture that LLVM was not built for; the machine's own triple is None."""
    if triple is None:
        return None
    from tvm.target import codegen

    if triple == str(codegen.llvm_get_system_triple()):
        return None
    known = sorted(map(str, codegen.llvm_get_targets()))
    if _arch(triple) not in known:
        near = difflib.get_close_matches(triple.split("-")[0], known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "write aarch64-linux-gnu"
        raise TargetError(f"LLVM knows no architecture of {_shown(triple)}", hint=hint)
    if _arch(triple) not in (*_INDISPENSABLE, host.architecture()):
        raise TargetError(
            f"bngen generates no code for {_arch(triple)}",
            hint=f"for {', '.join(_INDISPENSABLE)} it does",
        )
    if triple.endswith(("x32", "ilp32")):
        raise TargetError(
            f"{_shown(triple)} has addresses of 32 bits, and code of bngen needs 64",
            hint=f"write {_arch(triple)}-linux-gnu",
        )
    return triple


def _check_cpu(cpu: str, triple: str | None) -> None:
    known = _llvm_cpus(triple)
    if cpu in known:
        return
    near = difflib.get_close_matches(cpu, [*known, "native"], 4)
    hint = f"did you mean {' or '.join(near)}?" if near else "-mcpu=native is this machine"
    raise TargetError(f"LLVM knows no {_arch(triple)} CPU named {_shown(cpu)}", hint=hint)


def _check_attrs(attrs: Iterable[str], triple: str | None) -> None:
    table = host.known_features(_arch(triple))
    for name in attrs:
        # The small table first: the whole vocabulary means asking about each of LLVM's CPUs.
        if name in table or name in _llvm_vocabulary(triple):
            continue
        near = difflib.get_close_matches(name, _llvm_vocabulary(triple), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "leave it out"
        raise TargetError(f"-mattr: LLVM knows no feature {_shown(name)} here", hint=hint)


# --- resolving --------------------------------------------------------------------------------


def _arch(triple: str | None) -> str:
    if not triple:
        return host.architecture()
    first = triple.split("-")[0]
    return _ALIASES.get(first, first)


def _native(triple: str | None) -> tuple[str, dict[str, bool]]:
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
    named = _llvm_features(cpu, (), triple) & host.known_features(host.architecture()).keys()
    return cpu, {name: name in here for name in named ^ here}


def _describe(cpu: str, wanted: Mapping[str, bool], triple: str | None) -> Target:
    arch = _arch(triple)
    attrs = _effective_attrs(cpu, wanted, triple)
    features = _llvm_features(cpu, attrs, triple)
    _check_indispensable(cpu, arch, features)
    if "avx512f" in features and "prefer-256-bit" in features and "prefer-256-bit" not in wanted:
        # LLVM avoids 512-bit registers on many Intel CPUs for code it vectorizes itself; kernels
        # that are laid out in blocks of 16 lanes want them throughout.
        attrs = _effective_attrs(cpu, {**wanted, "prefer-256-bit": False}, triple)
        features = _llvm_features(cpu, attrs, triple)
    if "zvl256b" in features:
        # Code that counts on registers of 256 bits is wrong on those of 128, and nobody tells of a
        # machine how long they are. Kernels do not: their vectors have 128 bits.
        attrs = _effective_attrs(cpu, {**wanted, "zvl256b": False}, triple)
        features = _llvm_features(cpu, attrs, triple)
    lanes, registers = _vectors(arch, features)
    psabi = _psabi(arch, features)
    runs_here = not host.missing_features(arch, features)
    caches = (host.caches() if runs_here else None) or _TYPICAL_CACHES.get(psabi, _SMALLEST_CACHES)
    return Target(
        cpu=cpu,
        attrs=attrs,
        triple=triple,
        arch=arch,
        psabi=psabi,
        lanes=lanes,
        vector_registers=registers,
        fma=arch in ("aarch64", "riscv64") or "fma" in features,
        l1=caches.l1,
        l2=caches.l2,
        l3=caches.l3,
        threads=host.cpu_count(),
        features=features,
    )


def _check_indispensable(cpu: str, arch: str, features: frozenset[str]) -> None:
    missing = [name for name in _INDISPENSABLE.get(arch, ()) if name not in features]
    if missing:
        raise TargetError(
            f"{cpu} as asked for has no {', '.join(missing)}, which code for {arch} needs",
            hint=f"name a 64-bit CPU that has them, or -mattr={','.join(f'+{m}' for m in missing)}",
        )


def _effective_attrs(cpu: str, wanted: Mapping[str, bool], triple: str | None) -> tuple[str, ...]:
    """The wanted features that make a difference, those switched on first.

    LLVM applies them one by one, and each drags along what it implies or what depends on it. With
    the minus signs last, what was switched off stays off.
    """
    ordered = [f"+{n}" for n in sorted(wanted) if wanted[n]]
    ordered += [f"-{n}" for n in sorted(wanted) if not wanted[n]]
    result = _llvm_features(cpu, tuple(ordered), triple)
    for attr in list(ordered):
        without = [a for a in ordered if a != attr]
        if _llvm_features(cpu, tuple(without), triple) == result:
            ordered = without
    return tuple(ordered)


def _vectors(arch: str, features: frozenset[str]) -> tuple[int, int]:
    """Float32 lanes of the widest vector, and the number of vector registers."""
    if "avx512f" in features:
        return 16, 32
    if "avx" in features:
        return 8, 16
    # SVE's length is unknown while compiling; its low 128 bits are NEON's registers.
    return 4, 32 if arch in ("aarch64", "riscv64") else 16


def _psabi(arch: str, features: frozenset[str]) -> str:
    level = arch
    if arch == "x86_64":
        below: set[str] = set()
        for name, added in reversed(_PSABI_LEVELS):
            below |= added
            level = name if below <= features else level
    return level
