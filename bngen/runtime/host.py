"""Facts about the machine this process runs on: instruction set, caches, usable CPUs.

In: what the operating system reports (``/proc``, ``/sys``, the process's affinity and quota).
Out: feature names as LLVM spells them, bytes, counts. Needs neither TVM nor LLVM, because a saved
module must be able to refuse a foreign CPU where only the runtime is installed.

The flags of ``/proc/cpuinfo`` are the authority on what may be executed. Family and model numbers
are not: a hypervisor may mask features that the named CPU has, or report a model that lacks
features which the CPU beneath it offers.
"""

from __future__ import annotations

import functools
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bngen.runtime import tiles

#: Linux's name, by LLVM's, of each instruction-set extension that LLVM's code generation uses of
#: its own accord. What only intrinsics emit (clwb, waitpkg, ...) is left out: hypervisors often
#: mask it, and to refuse to run for its sake would refuse sound code.
X86_FEATURES: Mapping[str, str] = {
    **{
        name: name
        for name in (
            "adx aes avx avx2 avx512bw avx512cd avx512dq avx512f avx512ifma avx512vbmi avx512vl "
            "bmi2 cmov cmpccxadd cx16 cx8 f16c fma fma4 gfni mmx movbe movrs popcnt sha512 sm3 sm4 "
            "sse sse2 sse4a ssse3 tbm vaes vpclmulqdq xop"
        ).split()
    },
    **{name: "apx" for name in "ccmp egpr ndd nf ppx push2pop2 zu".split()},
    **{
        f"amx-{name}": f"amx_{name}"
        for name in "avx512 bf16 complex fp16 fp8 int8 movrs tf32 tile".split()
    },
    "64bit": "lm",
    "avx10.2": "avx10_2",
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512vp2intersect": "avx512_vp2intersect",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avxvnni": "avx_vnni",
    "avxvnniint16": "avx_vnni_int16",
    "avxvnniint8": "avx_vnni_int8",
    "bmi": "bmi1",
    "crc32": "sse4_2",
    "lzcnt": "abm",
    "pclmul": "pclmulqdq",
    "prfchw": "3dnowprefetch",
    "sahf": "lahf_lm",
    "sha": "sha_ni",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "x87": "fpu",
}

#: The same for AArch64, where Linux speaks of hardware capabilities.
AARCH64_FEATURES: Mapping[str, str] = {
    "aes": "aes",
    "bf16": "bf16",
    "altnzcv": "flagm2",
    "complxnum": "fcma",
    "crc": "crc32",
    "cssc": "cssc",
    "dotprod": "asimddp",
    "fp-armv8": "fp",
    "flagm": "flagm",
    "fp16fml": "asimdfhm",
    "fptoint": "frint",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
    "jsconv": "jscvt",
    "lse": "atomics",
    "mops": "mops",
    "neon": "asimd",
    "rcpc": "lrcpc",
    "rdm": "asimdrdm",
    "sha2": "sha2",
    "sha3": "sha3",
    "sm4": "sm4",
    "sme": "sme",
    "sve": "sve",
    "sve2": "sve2",
    "sve2p1": "sve2p1",
}

#: The same for RISC-V, where Linux gives a string: ``rv64imafdcv_zba_zbb``.
RISCV64_FEATURES: Mapping[str, str] = {
    name: name
    for name in (
        "a c d f i m v zba zbb zbc zbs zca zfa zfh zfhmin zicond zmmul zvbb zve32f zve32x zve64d "
        "zve64f zve64x zvfh zvfhmin"
    ).split()
}
#: What it leaves out, since another extension has it.
_RISCV_IMPLIED: Mapping[str, str] = {
    "b": "zba zbb zbs", "c": "zca", "d": "f", "g": "i m a f d", "m": "zmmul", "v": "zve64d",
    "zfh": "zfhmin", "zve32f": "zve32x", "zve64d": "zve64f", "zve64f": "zve64x zve32f",
    "zve64x": "zve32x", "zvfh": "zvfhmin",
}  # fmt: skip

TILES = "amx-"
"""What the names of features begin with that are of Intel's matrix unit."""

_FEATURES = {"x86_64": X86_FEATURES, "aarch64": AARCH64_FEATURES, "riscv64": RISCV64_FEATURES}
_CPUINFO = Path("/proc/cpuinfo")
_CPU_DIR = Path("/sys/devices/system/cpu")
_CGROUP_DIR = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Caches:
    """Bytes of data cache that one core can call its own; a shared level is divided evenly."""

    l1: int
    l2: int
    l3: int


def architecture() -> str:
    """The machine's architecture as LLVM's triples spell it: ``x86_64``, ``aarch64``, ..."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def system() -> str:
    """The operating system, in lower case: ``linux``, ``darwin``, ..."""
    return platform.system().lower()


def known_features(arch: str) -> Mapping[str, str]:
    """The extensions whose presence can be checked on an architecture, LLVM's name first."""
    return _FEATURES.get(arch, {})


@functools.cache
def features() -> frozenset[str] | None:
    """Instruction-set extensions of this CPU by LLVM's names, or None where nobody tells."""
    flags = _cpuinfo_flags(_read(_CPUINFO) or "")
    table = known_features(architecture())
    if not flags or not table:
        return None
    here = frozenset(name for name, flag in table.items() if flag in flags)
    # What a CPU has of tiles a program has by the system's leave, see `bngen.runtime.tiles`.
    if any(name.startswith(TILES) for name in here) and not tiles.are_known():
        here = frozenset(name for name in here if not name.startswith(TILES))
    return here


def missing_features(arch: str, required: Iterable[str]) -> tuple[str, ...]:
    """What code for `arch` that uses the extensions `required` would need and this CPU lacks.

    Args:
        arch: architecture the code was made for; another one than this machine's is missing whole.
        required: LLVM feature names; those that are mere tuning hints are of no account.

    Returns:
        The missing names, sorted; empty if the code may run here.
    """
    if arch != architecture():
        return (arch,)
    here = features()
    if here is None:
        return ()
    return tuple(sorted(set(required) & known_features(arch).keys() - here))


def cpu_count() -> int:
    """CPUs this process may use: its affinity mask, cut down to its control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    quota = _cgroup_quota(_CGROUP_DIR, _read(Path("/proc/self/cgroup")) or "")
    return max(1, usable if quota is None else min(usable, math.ceil(quota)))


def share_of_cpus() -> int | None:
    """CPUs that are this process's own among those that torchrun has started on this machine.

    torchrun sets LOCAL_WORLD_SIZE, and OMP_NUM_THREADS to 1 where nobody has set it: on a machine
    of many CPUs most of them would idle.

    Returns:
        At least 1; None where torchrun has started no other, or where somebody has given each
        process CPUs of its own.
    """
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    started = "TORCHELASTIC_RUN_ID" in os.environ and count.isdecimal() and len(count) < 9
    if not started or int(count) < 2:
        return None
    if hasattr(os, "sched_getaffinity"):
        try:
            everyones = os.sched_getaffinity(os.getppid())
        except OSError:  # It has ended.
            everyones = os.sched_getaffinity(0)
        if os.sched_getaffinity(0) < everyones:
            return None
    return max(1, cpu_count() // int(count))


@functools.cache
def caches() -> Caches | None:
    """This machine's data caches, or None where the operating system does not tell."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return _read_caches(_CPU_DIR / f"cpu{cpus[0]}" / "cache")


def identity() -> str:
    """A text that is another on a machine for which another program might be compiled."""
    told = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    first, _, _ = (_read(_CPUINFO) or "").partition("\n\n")
    rows = (line.partition(":") for line in first.splitlines())
    model = {name.strip(): value.strip() for name, _, value in rows if name.strip() in told}
    here = features()
    facts = (architecture(), model, None if here is None else sorted(here), caches(), cpu_count())
    return repr(facts)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _cpuinfo_flags(text: str) -> frozenset[str]:
    """Flags that *every* listed CPU has: mixed machines exist."""
    read = {"flags": str.split, "Features": str.split, "isa": _riscv_flags}
    per_cpu = [
        frozenset(read[key.strip()](value.strip()))
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if key.strip() in read
    ]
    return frozenset.intersection(*per_cpu) if per_cpu else frozenset()


def _riscv_flags(isa: str) -> set[str]:
    """``rv64gc_zba`` -> i, m, a, f, d, c, zba, and what these imply."""
    letters, *names = isa.lower().removeprefix("rv64").split("_")
    pending, found = [*letters, *names], set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += _RISCV_IMPLIED.get(name, "").split()
    return found


def _cgroup_quota(root: Path, membership: str) -> float | None:
    """The tightest CPU quota, in CPUs, on the way from this process's group to the root."""
    found = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _quota_v1
        else:
            continue
        group = base / path.lstrip("/")
        # In a container the path is that of the outside and need not exist; the root then is ours.
        for place in (group, *group.parents):
            if not place.is_relative_to(base):
                break
            found.append(read(place))
    return min((q for q in found if q is not None), default=None)


def _quota_v2(group: Path) -> float | None:
    quota, _, period = (_read(group / "cpu.max") or "max").partition(" ")
    return None if quota == "max" or not period else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    quota, period = (_read(group / f"cpu.cfs_{which}_us") for which in ("quota", "period"))
    return None if not quota or not period or int(quota) <= 0 else int(quota) / int(period)


def _read_caches(folder: Path) -> Caches | None:
    levels: dict[int, tuple[int, int]] = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if not level or not size or kind not in ("Data", "Unified"):
            continue
        sharers = _count_cpus(_read(index / "shared_cpu_list") or "0")
        levels[int(level)] = (_bytes(size), sharers)
    if 1 not in levels:
        return None
    # The CPUs that share an L1 are hardware threads of one core.
    threads_per_core = levels[1][1]
    own = {k: size * threads_per_core // sharers for k, (size, sharers) in levels.items()}
    l2 = own.get(2, own[1])
    return Caches(own[1], l2, own.get(3, l2))


def _count_cpus(ranges: str) -> int:
    """Length of a list such as ``0-3,8-11``."""
    bounds = [part.partition("-")[::2] for part in ranges.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, last in bounds)


def _bytes(size: str) -> int:
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1], 1)
    return int(size.rstrip("KMG")) * unit
