"""What a machine can do: vectors, multiply-add units, loads, caches. Schedules follow from this.

In: an architecture and LLVM's features. Out: a `Machine`. Three numbers must not be taken for one
another: how many elements of a type a vector holds (`Machine.lanes`), how many channels a block of
a layout has (which the driver chooses, see `Target.channel_block`), and these traits.

A row of `TRAITS` stands for all CPUs of an instruction set; what one of them does better than the
row says is worth a row of its own only where knobs would differ.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from bngen.dtypes import DTYPES
from bngen.runtime.host import Caches


@dataclass(frozen=True)
class Traits:
    """What CPUs of an architecture with some instructions have in common.

    Attributes:
        arch: LLVM's name of the architecture.
        needs: features, all of which such a CPU has.
        vector_bytes: bytes of the widest vector worth using.
        vector_registers: how many of them there are.
        folds_broadcasts: whether a multiply-add reads one element of memory into all lanes itself.
        multiply_add_units: vector multiply-adds that start in a cycle.
        multiply_add_latency: cycles until the next one may use a result.
        load_ports: vectors, or elements for all lanes, that are loaded in a cycle.
    """

    arch: str
    needs: frozenset[str]
    vector_bytes: int
    vector_registers: int
    folds_broadcasts: bool = False
    multiply_add_units: int = 2
    multiply_add_latency: int = 4
    load_ports: int = 2

    @property
    def multiply_adds_in_flight(self) -> int:
        """Sums that must be under way at once, that no unit waits for the result of another."""
        return self.multiply_add_units * self.multiply_add_latency


@dataclass(frozen=True)
class Machine:
    """One machine: its traits, and what the system says of it.

    Attributes:
        traits: what its CPU has in common with others.
        l1: bytes of level-1 data cache of one core.
        l2: bytes of level-2 cache of one core.
        l3: one core's share of the level-3 cache, in bytes.
        threads: CPUs this process may use, the default number of threads.
    """

    traits: Traits
    l1: int
    l2: int
    l3: int
    threads: int

    def lanes(self, dtype: str) -> int:
        """Elements of a type in a vector."""
        return self.traits.vector_bytes // DTYPES[dtype].nbytes


def _row(arch: str, needs: str, *sizes: int, **more: bool) -> Traits:
    return Traits(arch, frozenset(needs.split()), *sizes, **more)


TRAITS: tuple[Traits, ...] = (
    _row("x86_64", "avx512f", 64, 32, folds_broadcasts=True),
    _row("x86_64", "avx", 32, 16),
    _row("x86_64", "", 16, 16),
    # SVE's length is unknown while compiling; its low 128 bits are NEON's registers.
    _row("aarch64", "", 16, 32),
    # Nor is RVV's; vectors of 128 bits it has. Without RVV, LLVM makes do with scalars.
    _row("riscv64", "", 16, 32),
)
"""The first row of an architecture whose needs are met. Units, latency and ports are those of the
cores that the knobs' constants were fitted on (znver3, znver4), and of most others: Neoverse,
Skylake, Golden Cove."""

_OTHER = _row("", "", 16, 16)


def traits_of(arch: str, features: Set[str]) -> Traits:
    """The traits of CPUs of an architecture that have these features.

    An architecture without a row has none that bngen knows of: the least that any has.
    """
    rows = (row for row in TRAITS if row.arch == arch and row.needs <= features)
    return next(rows, _OTHER)


def machine_of(arch: str, features: Set[str], caches: Caches, threads: int) -> Machine:
    """A machine of an architecture with these features, caches and threads."""
    return Machine(traits_of(arch, features), caches.l1, caches.l2, caches.l3, threads)


# --- levels -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """A set of features that systems build for, by which record files are found.

    Attributes:
        name: x86-64's micro-architecture level, else the architecture.
        adds: features beyond the level below.
        caches: what to count on where the machine is not at hand: the least that such CPUs have.
    """

    name: str
    adds: frozenset[str] = frozenset()
    caches: Caches = Caches(32 << 10, 256 << 10, 1 << 20)


def _level(name: str, adds: str, *caches: int) -> Level:
    known = [Caches(*caches)] if caches else []
    return Level(name, frozenset(adds.split()), *known)


LEVELS: dict[str, tuple[Level, ...]] = {
    "x86_64": (
        _level("x86-64", "sse2"),
        _level("x86-64-v2", "cx16 popcnt sse3 sse4.1 sse4.2 ssse3"),
        _level("x86-64-v3", "avx2 bmi bmi2 f16c fma lzcnt movbe", 32 << 10, 256 << 10, 2 << 20),
        _level(
            "x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl",
            32 << 10, 1 << 20, 1408 << 10,
        ),
    ),
    "aarch64": (_level("aarch64", "", 64 << 10, 1 << 20, 1 << 20),),
}  # fmt: skip
"""Architecture -> its levels, each with all that those before it have."""


def level_of(arch: str, features: Set[str]) -> Level:
    """The highest level of an architecture whose features, and those below, are all there."""
    reached = Level(arch)
    for level in LEVELS.get(arch, ()):
        if not level.adds <= features:
            break
        reached = level
    return reached
