"""Traffic of each kernel, measured in a simulated cache: valgrind's cachegrind counts its misses.

In: a bundle for a CPU that valgrind knows (AVX2, not AVX-512). Out: for each kernel's symbol the
bytes of the lines that its loads and its stores missed in the last level. A line that is stored to
counts once, as it is brought in; that it goes back to memory one day counts nothing, and so what is
counted compares with what a plan reads and writes. One training step is taken, on one thread. As a
script this module is the process that valgrind runs.

Cachegrind goes by names of functions. LLVM gives the loops that are shared out to threads none, so
that their instructions lie behind the functions that have one: in the library that is simulated,
each function reaches to the next.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bngen.errors import BngenError, ToolchainError
from bngen.runtime import folders
from bngen.runtime import threads as thread_pool
from bngen.runtime.bundle import Bundle
from bngen.runtime.module import Module
from bngen.runtime.native import load_file

TARGET = "llvm -mcpu=x86-64-v3"
"""What is simulated; valgrind 3.19 does not know AVX-512."""
LINE = 64
LEAST = 512 << 10
"""Bytes of the smallest last level: weights of a kernel and its scratch have to have room."""
_LIBRARY, _COUNTS, _TOLD = "kernels.so", "counts", "told"
"""Files of a simulation."""


@dataclass(frozen=True)
class Caches:
    """What is simulated, in bytes: a level-1 data cache and a last level, as one core has them."""

    l1: int = 32 << 10
    last: int = 2 << 20

    def for_maps(self, image: int, meant: int) -> Caches:
        """The last level as much smaller as maps are where images are; its working sets are not.

        Args:
            image: height and width that are simulated.
            meant: those that they stand for.
        """
        return replace(self, last=max(LEAST, int(self.last * min(1.0, (image / meant) ** 2))))

    def flags(self) -> tuple[str, ...]:
        """As cachegrind's options."""
        return f"--D1={self.l1},8,{LINE}", f"--LL={self.last},16,{LINE}"


@dataclass(frozen=True)
class Missed:
    """Bytes of the lines that one kernel missed, in all of its calls.

    Attributes:
        read: by loads.
        written: by stores.
    """

    read: int
    written: int


def obstacle() -> str | None:
    """Why nothing can be simulated here, or None where it can."""
    from bngen.target.parse import Target

    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    target = Target.parse(TARGET)
    return None if target.runs_here() else f"this machine cannot run {target.cpu} code"


def simulate(bundle: Bundle, caches: Caches) -> dict[str, Missed]:
    """Take one training step in a simulated cache.

    Args:
        bundle: of a program with its gradient, for `TARGET`, linked.
        caches: what is simulated.

    Returns:
        By symbol what the kernels missed.

    Raises:
        ToolchainError: when valgrind fails.
    """
    with Simulation(bundle, caches) as running:
        return running.missed()


class Simulation:
    """One training step that is being simulated, from `__enter__` to `__exit__`.

    Simulations do not disturb each other: what they count is no time.

    Args:
        bundle: see `simulate`.
        caches: see `simulate`.
    """

    def __init__(self, bundle: Bundle, caches: Caches):
        if bundle.library is None:
            raise ToolchainError("the simulation needs a C compiler", hint="install gcc")
        self._bundle, self._caches, self._stack = bundle, caches, ExitStack()

    def __enter__(self) -> Simulation:
        with ExitStack() as stack:
            self._folder = folder = stack.enter_context(folders.scratch())
            self._bundle.save(folder / "bundle")
            (folder / _LIBRARY).write_bytes(widened(self._bundle.library))
            told = stack.enter_context((folder / _TOLD).open("w"))
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told
            )
            stack.callback(self._process.wait)
            stack.callback(self._process.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.close()

    def _command(self) -> list[str]:
        return [
            "valgrind", "--tool=cachegrind", "--cache-sim=yes", *self._caches.flags(), "-q",
            f"--cachegrind-out-file={self._folder / _COUNTS}", sys.executable, "-m", __name__,
            str(self._folder),
        ]  # fmt: skip

    def missed(self) -> dict[str, Missed]:
        """Wait for the step's end; what its kernels missed, by symbol.

        Raises:
            ToolchainError: when valgrind fails.
        """
        status, counts = self._process.wait(), self._folder / _COUNTS
        if status or not counts.exists():
            told = (self._folder / _TOLD).read_text().strip().splitlines()
            last = (told or ["no message"])[-1]
            raise ToolchainError(f"valgrind ended with status {status}: {last}")
        with counts.open() as lines:
            missed = by_function(lines)
        return {
            symbol: sum_of(missed, (f"__tvm_ffi_{symbol}", f"{symbol}_compute_"))
            for symbol in self._bundle.objects
        }


def sum_of(missed: Mapping[str, Missed], names: tuple[str, ...]) -> Missed:
    """What functions missed together."""
    found = [missed[name] for name in names if name in missed]
    return Missed(sum(m.read for m in found), sum(m.written for m in found))


def by_function(lines: Iterator[str]) -> dict[str, Missed]:
    """Last-level misses by function, of a file that cachegrind has written."""
    found: dict[str, Missed] = {}
    events: list[str] = []
    name = ""
    for line in lines:
        if line.startswith("fn="):
            name = line[3:].rstrip("\n")
        elif line.startswith("events:"):
            events = line.split()[1:]
        elif line[:1].isdigit():
            counted = dict(zip(events, map(int, line.split()[1:]), strict=False))
            before = found.get(name, Missed(0, 0))
            found[name] = Missed(
                before.read + LINE * counted.get("DLmr", 0),
                before.written + LINE * counted.get("DLmw", 0),
            )
    return found


def widened(library: bytes) -> bytes:
    """A shared library (ELF, 64 bits, little-endian) whose functions reach to the next each."""
    if library[:6] != b"\x7fELF\x02\x01":
        raise ToolchainError("the simulation reads ELF libraries of 64 bits alone")
    wide = bytearray(library)
    (start,) = struct.unpack_from("<Q", library, 0x28)
    step, count = struct.unpack_from("<HH", library, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", library, start + i * step) for i in range(count)]
    for _, kind, _, _, offset, length, *_ in sections:
        if kind != _SYMTAB:
            continue
        functions = []
        for at in range(offset, offset + length, _SYMBOL):
            _, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", library, at)
            if info & 15 == _FUNCTION and 0 < section < count:
                functions.append((section, value, at))
        functions.sort()
        for (section, value, at), after in zip(functions, [*functions[1:], None], strict=True):
            end = sections[section][3] + sections[section][5]
            if after is not None and after[0] == section:
                end = after[1]
            struct.pack_into("<Q", wide, at + 16, end - value)
    return bytes(wide)


_SYMTAB, _SYMBOL, _FUNCTION = 2, 24, 2
"""``SHT_SYMTAB``, the bytes of an ``Elf64_Sym``, and ``STT_FUNC`` of elf.h."""


# --- the process that is simulated ------------------------------------------------------------


def one_step(folder: Path) -> None:
    """A training step of the bundle in a folder, by the library beside it."""
    bundle = Bundle.read(folder / "bundle")
    thread_pool.install()
    symbols = {step.symbol for step in bundle.built.kernels}
    module = Module(bundle, load_file(folder / _LIBRARY, symbols), num_threads=1).init(0)
    module(*(_argument(spec) for spec in module.signature.arguments))
    module.backward(*(np.ones(s.shape, s.dtype) for s in module.signature.cotangents))


def _argument(spec: Any) -> np.ndarray:
    """Numbers that cost little to make where each instruction is simulated."""
    if spec.dtype.startswith("float"):
        count = int(np.prod(spec.shape))
        return np.linspace(-1.0, 1.0, count, dtype=spec.dtype).reshape(spec.shape)
    return np.zeros(spec.shape, spec.dtype)


if __name__ == "__main__":
    try:
        one_step(Path(sys.argv[1]))
    except BngenError as error:
        sys.exit(str(error))
