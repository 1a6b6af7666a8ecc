"""What CPUs can do, as data: vectors, registers, multiply-add units, loads.

In: an architecture, a CPU's name and features, as LLVM has them. Out: `Traits`.

The first row of an architecture that fits counts: those of named CPUs, and of features that tell a
core for certain (a virtual machine may give it another name), come before those of instruction
sets. Numbers are of vectors as wide as the row's, in single precision, from the vendors' manuals:

- *Intel 64 and IA-32 Architectures Optimization Reference Manual*, 248966, chapter 2;
- AMD, *Software Optimization Guide*, 56305 (Zen 2), 56665 (Zen 3), 57647 (Zen 4), 58455 (Zen 5);
- Arm, *Neoverse N1, N2, V1, V2 Core Software Optimization Guide*.

Instructions for pairs of bfloat16 have a table of their own, `PAIRS`, and so have matrix units,
`TILES`. `measured` corrects the first two where the machine at hand is what one compiles for.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Pairs:
    """An instruction that adds the products of two pairs of bfloat16 to each float of a vector.

    Attributes:
        needs: features, all of which a CPU has that has it so.
        units: how many start in a cycle; a fraction where each takes several.
        latency: cycles until the next one may use a result.
        cpus: LLVM's names of the CPUs; none stands for any.
    """

    needs: frozenset[str]
    units: float
    latency: int
    cpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tiles:
    """A matrix unit whose registers, of 16 rows of 64 bytes, are sums of products of bfloat16.

    Attributes:
        needs: features, all of which a CPU has that has it so.
        row_cycles: cycles of a product of registers for each row of its sums.
        least_cycles: cycles of a product of however few rows.
        load_cycles: cycles of a load for each row.
    """

    needs: frozenset[str]
    row_cycles: float
    least_cycles: float
    load_cycles: float


@dataclass(frozen=True)
class Traits:
    """What some CPUs of an architecture have in common.

    Attributes:
        arch: LLVM's name of the architecture.
        needs: features, all of which such a CPU has.
        vector_bytes: bytes of the widest vector worth using.
        vector_registers: how many of them there are.
        cpus: LLVM's names of the CPUs; none stands for any.
        folds_broadcasts: whether a multiply-add reads one element of memory into all lanes itself.
        multiply_add_units: vector multiply-adds that start in a cycle.
        multiply_add_latency: cycles until the next one may use a result.
        load_ports: vectors, or elements for all lanes, that are loaded in a cycle.
        pairs: the instruction for pairs of bfloat16; None without one.
        tiles: the matrix unit for them; None without one.
    """

    arch: str
    needs: frozenset[str]
    vector_bytes: int
    vector_registers: int
    cpus: tuple[str, ...] = ()
    folds_broadcasts: bool = False
    multiply_add_units: float = 2.0
    multiply_add_latency: int = 4
    load_ports: int = 2
    pairs: Pairs | None = None
    tiles: Tiles | None = None

    @property
    def pairs_pay(self) -> bool:
        """Whether products of pairs are done faster than as many multiply-adds.

        An instruction for pairs does two products in each lane; but widening bfloat16 to floats for
        multiply-adds costs nothing where a scratch holds them.
        """
        units = self.pairs.units if self.pairs else 0.0
        return 2 * units >= LEAST_GAIN * self.multiply_add_units

    def of_pairs(self) -> Traits:
        """The same CPU to whom its instruction for pairs is the multiply-add."""
        units, latency = self.pairs.units, self.pairs.latency
        return replace(self, multiply_add_units=units, multiply_add_latency=latency)

    @property
    def multiply_adds_in_flight(self) -> float:
        """Sums that must be under way at once, that no unit waits for the result of another."""
        return self.multiply_add_units * self.multiply_add_latency

    @property
    def broadcasts_are_free(self) -> bool:
        """Whether a multiply-add may load its element itself without waiting for a load port."""
        return self.folds_broadcasts and 2 * self.multiply_add_units <= self.load_ports

    def fits(self, arch: str, cpu: str, features: Set[str]) -> bool:
        """Whether a CPU is one of these."""
        named = not self.cpus or cpu in self.cpus
        return named and self.arch == arch and self.needs <= features


def _row(arch: str, needs: str, *sizes: int, cpus: str = "", units: int = 2, latency: int = 4,
         loads: int = 2, folds: bool = False) -> Traits:  # fmt: skip
    return Traits(arch, frozenset(needs.split()), *sizes, cpus=tuple(cpus.split()),
                  folds_broadcasts=folds, multiply_add_units=float(units),
                  multiply_add_latency=latency, load_ports=loads)  # fmt: skip


TRAITS: tuple[Traits, ...] = (
    # AVX-512. A multiply-add of 512 bits takes both of Zen 4's units, or ports 0 and 1 of Intel's
    # small cores, which lack the one on port 5. Xeons that lack it have the same name as others.
    _row("x86_64", "avx512fp16", 64, 32, folds=True),  # Sapphire Rapids and later
    _row("x86_64", "avx512f", 64, 32, folds=True, units=1,
         cpus="znver4 cannonlake icelake-client tigerlake rocketlake"),
    _row("x86_64", "avx512f", 64, 32, folds=True,
         cpus="skylake-avx512 cascadelake cooperlake icelake-server znver5"),
    _row("x86_64", "avx512f", 64, 32, folds=True),
    # AVX and AVX2. Zen 1 and Intel's efficient cores take a vector in halves.
    _row("x86_64", "avx", 32, 16, latency=5, cpus="haswell broadwell"),
    _row("x86_64", "avx", 32, 16, units=1, loads=1, latency=5, cpus="znver1"),
    _row("x86_64", "avx", 32, 16, latency=5, cpus="znver2"),
    _row("x86_64", "avx", 32, 16, cpus="znver3 skylake"),
    _row("x86_64", "avx", 32, 16, units=1, loads=1, cpus="gracemont sierraforest grandridge"),
    _row("x86_64", "avx", 32, 16, loads=3,
         cpus="alderlake raptorlake meteorlake arrowlake arrowlake-s lunarlake"),
    _row("x86_64", "avx", 32, 16),
    _row("x86_64", "", 16, 16),
    # SVE's length is unknown while compiling; its low 128 bits are NEON's registers.
    _row("aarch64", "", 16, 32, units=4, loads=3, cpus="neoverse-v1 neoverse-v2 neoverse-v3"),
    _row("aarch64", "", 16, 32, loads=3, cpus="neoverse-n2 neoverse-n3"),
    _row("aarch64", "", 16, 32, cpus="neoverse-n1"),
    _row("aarch64", "", 16, 32),
    # Nor is RVV's; vectors of 128 bits it has. Without RVV, LLVM makes do with scalars.
    _row("riscv64", "", 16, 32),
)  # fmt: skip
"""In order of preference."""

_OTHER = _row("", "", 16, 16)

LEAST_GAIN = 1.25
"""Products of pairs for each by multiply-adds, from which on making words of two pays."""


def _pairs(needs: str, units: float, latency: int, cpus: str = "") -> Pairs:
    return Pairs(frozenset(needs.split()), units, latency, tuple(cpus.split()))


PAIRS: tuple[Pairs, ...] = (
    # AVX512-BF16's VDPBF16PS. Intel's cores with matrix tiles (AMX) leave bfloat16 to those: one
    # every other cycle is half the products of their two multiply-add units (measured on a Xeon
    # with AVX512-FP16, where oneDNN without tiles is as slow; pull request 1025 of tpp-mlir says so
    # of another). Zen 4 does twice the products of its multiply-adds (pull request 15089 of IREE),
    # and so does Zen 5 (measured: 560 GFLOP/s a core). Cooper Lake's is as its maker claims.
    _pairs("avx512bf16 avx512fp16", 0.5, 8),
    _pairs("avx512bf16", 1.0, 6, cpus="znver4"),
    _pairs("avx512bf16", 2.0, 6, cpus="znver5 cooperlake"),
    _pairs("avx512bf16", 1.0, 6),
)
"""In order of preference."""


TILES: tuple[Tiles, ...] = (
    # AMX-BF16: Sapphire Rapids, Emerald Rapids, Granite Rapids. Intel's manual, chapter 20: one
    # TDPBF16PS of 16 rows every 16 cycles, one TILELOADD every 8. Measured: of 7 rows every 9, of
    # 4 no faster. What rounds its operands is AVX512-BF16's.
    Tiles(frozenset({"amx-tile", "amx-bf16", "avx512bf16"}), 1.0, 9.0, 0.5),
)
"""In order of preference."""


def traits_of(arch: str, cpu: str, features: Set[str]) -> Traits:
    """The traits of a CPU.

    An architecture without a row has none that bngen knows of: the least that any has.
    """
    traits = next((row for row in TRAITS if row.fits(arch, cpu, features)), _OTHER)
    fitting = (p for p in PAIRS if p.needs <= features and (not p.cpus or cpu in p.cpus))
    found = {
        "pairs": next(fitting, None),
        "tiles": next((t for t in TILES if t.needs <= features), None),
    }
    return replace(traits, **found) if any(found.values()) else traits
