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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bngen.dtypes import FLOAT, TILES
from bngen.errors import TargetError
from bngen.runtime import host
from bngen.runtime.compiled_for import CompiledFor
from bngen.target import llvm
from bngen.target.cpus import traits_of
from bngen.target.machine import Machine, level_of, machine_of
from bngen.target.measured import corrected
from bngen.target.written import check_value, options_of, split_attrs

_SYSTEMS = ("linux", "darwin", "macos", "windows", "freebsd")


@dataclass(frozen=True)
class Target:
    """A CPU as the schedule generator and LLVM need to see it; made by `Target.parse`.

    Attributes:
        cpu: LLVM's name of the CPU, never ``native``.
        attrs: features switched on, then those switched off, relative to that CPU: ``+a``, ``-b``.
        triple: LLVM target triple if another than this machine's was asked for.
        arch: architecture as LLVM names it, ``x86_64`` or one of another triple.
        psabi: x86-64 micro-architecture level (``x86-64-v4`` ...), else the architecture.
        machine: vectors, units and caches, which schedules follow from.
        fma: whether multiply and add are one instruction. LLVM contracts a separate multiplication
            and addition of a scheduled kernel by itself; no flag is needed.
        features: everything LLVM enables, tuning hints included.
        kind: always ``llvm``.
    """

    cpu: str
    attrs: tuple[str, ...]
    triple: str | None
    arch: str
    psabi: str
    machine: Machine
    fma: bool
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
        options = options_of(spec)
        given = {"mcpu": mcpu or None, "mattr": mattr or None}
        for key, value in given.items():
            if value is not None:
                check_value(key, value)
        cpu = mcpu or options.get("mcpu") or "generic"
        triple = llvm.check_triple(options.get("mtriple"))
        attrs = split_attrs(options.get("mattr", ())) | split_attrs(mattr or ())
        if cpu == "native":
            cpu, native_attrs = llvm.native_cpu(triple)
            attrs = native_attrs | attrs
        llvm.check_cpu(cpu, triple)
        llvm.check_attrs(attrs, triple)
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

    @property
    def channel_block(self) -> int:
        """Channels of a block of a feature map: as many floats as a vector holds."""
        return self.machine.lanes(FLOAT)

    @property
    def pairs(self) -> str:
        """Which convolutions of bfloat16 multiply pairs of channels: ``all``, `TILES`, or none.

        A CPU may have a matrix unit for them, and an instruction that is slower than multiply-adds.
        """
        traits = self.machine.traits
        return "all" if traits.pairs_pay else TILES if traits.tiles else ""

    def tvm(self) -> Any:
        """This target as a ``tvm.target.Target``."""
        return llvm.tvm_target(self.cpu, self.attrs, self.triple)

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

    def compiled_for(self, *, tiles: bool = True) -> CompiledFor:
        """What a machine has to be to run code for this target.

        Args:
            tiles: whether there are sums in tiles in it. LLVM makes none by itself.
        """
        features = self.required_features()
        return CompiledFor(
            text=str(self),
            cpu=self.cpu,
            lanes=self.channel_block,
            arch=self.arch,
            system=self.system,
            features=tuple(f for f in features if tiles or not f.startswith(host.TILES)),
        )

    @property
    def system(self) -> str:
        """Operating system that objects are for, as `host.system` names it."""
        words = (self.triple or "").split("-")[1:]
        if not words:
            return host.system()
        named = [name for name in _SYSTEMS for word in words if word.startswith(name)]
        return {"macos": "darwin"}.get(named[0], named[0]) if named else words[-1]

    def loads_here(self) -> bool:
        """Whether this machine's loader takes objects for this target, be its CPU what it may."""
        return (self.arch, self.system) == (host.architecture(), host.system())


def _describe(cpu: str, wanted: Mapping[str, bool], triple: str | None) -> Target:
    arch = llvm.architecture_of(triple)
    attrs = llvm.effective_attrs(cpu, wanted, triple)
    features = llvm.features_of(cpu, attrs, triple)
    llvm.check_indispensable(cpu, arch, features)
    if "avx512f" in features and "prefer-256-bit" in features and "prefer-256-bit" not in wanted:
        # LLVM avoids 512-bit registers on many Intel CPUs for code it vectorizes itself; kernels
        # that are laid out in blocks of 16 lanes want them throughout.
        attrs = llvm.effective_attrs(cpu, {**wanted, "prefer-256-bit": False}, triple)
        features = llvm.features_of(cpu, attrs, triple)
    if "zvl256b" in features:
        # Code that counts on registers of 256 bits is wrong on those of 128, and nobody tells of a
        # machine how long they are. Kernels do not: their vectors have 128 bits.
        attrs = llvm.effective_attrs(cpu, {**wanted, "zvl256b": False}, triple)
        features = llvm.features_of(cpu, attrs, triple)
    runs_here = not host.missing_features(arch, features)
    level, traits = level_of(arch, features), traits_of(arch, cpu, features)
    caches = (host.caches() if runs_here else None) or level.caches
    has_fma = arch in ("aarch64", "riscv64") or "fma" in features
    if runs_here and has_fma:
        # Code that is run, so for this system: another's is called in another way.
        traits = corrected(traits, llvm.tvm_target(cpu, attrs))
    return Target(
        cpu=cpu,
        attrs=attrs,
        triple=triple,
        arch=arch,
        psabi=level.name,
        machine=machine_of(traits, caches, host.cpu_count()),
        fma=has_fma,
        features=features,
    )
