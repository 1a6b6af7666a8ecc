"""A bundle for another machine, linked with a small C program and run under an emulator.

In: a `Bundle` and an array for each of its arguments, parameters, buffers and output gradients.
Out: what a module would return of ``forward`` and ``backward``, and what both leave in buffers. The
C program is made of the bundle's data alone: its steps, their operands, the size of the arena, and
the imports that the manifest lists. It runs parallel loops as several tasks, one after the other.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bngen.dtypes import DTYPES
from bngen.runtime import toolchain
from bngen.runtime.bundle import Bundle
from bngen.runtime.bundle_form import object_file
from bngen.runtime.signature import OutputSpec, input_slot
from bngen.runtime.steps import CopyStep, Operand

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Emulator:
    """How code for an architecture is linked and run here.

    Attributes:
        compiler: a C compiler for it.
        command: what runs a program that it made.
        order: of bytes there, as NumPy writes it.
    """

    compiler: str
    command: tuple[str, ...]
    order: str = "<"

    def check_there(self) -> None:
        """Skip the test where a tool is missing."""
        for tool in (self.compiler, self.command[0]):
            if shutil.which(tool) is None:
                pytest.skip(f"there is no {tool} here")


@dataclass(frozen=True)
class Ran:
    """What a run gave: results in order, gradients by name, new contents of updated inputs."""

    outputs: list[np.ndarray]
    gradients: dict[str, np.ndarray]
    updates: dict[str, np.ndarray]


def run(bundle: Bundle, args: Arrays, emulator: Emulator, folder: Path) -> Ran:
    """Run all steps of a bundle.

    Args:
        bundle: compiled with its gradient or without.
        args: an array for each input, by name.
        emulator: what runs it.
        folder: an empty folder for the program and its files.
    """
    emulator.check_there()
    memory = _memory(bundle, args, emulator.order)
    (folder / "driver.c").write_text(_driver(bundle, memory))
    bundle.save(folder / "bundle")
    objects = [f"bundle/{object_file(symbol)}" for symbol in bundle.objects]
    # As `bngen.load` links them on such a machine.
    first, *libraries = toolchain.LINK_FLAGS
    _call(folder, emulator.compiler, first, *objects, *libraries, "-o", "kernels.so")
    _call(folder, emulator.compiler, "-O1", "-static", "driver.c", *objects, "-lm", "-o", "driver")
    (folder / "before").write_bytes(b"".join(a.tobytes() for a in memory.values()))
    _call(folder, *emulator.command, "./driver")
    after = (folder / "after").read_bytes()
    found, at = {}, 0
    for slot, array in memory.items():
        found[slot] = np.frombuffer(after, np.uint8, array.nbytes, at)
        at += array.nbytes
    return _results(bundle, found, emulator.order)


def _call(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"


def _memory(bundle: Bundle, args: Arrays, order: str) -> dict[str | None, np.ndarray]:
    """The contents of the arena and of each slot before the run."""
    signature = bundle.built.signature
    memory: dict[str | None, np.ndarray] = {None: np.zeros(bundle.built.nbytes, np.uint8)}
    for spec in (*signature.arguments, *signature.state, *signature.cotangents):
        array = np.array(args[spec.name], np.dtype(spec.dtype).newbyteorder(order), order="C")
        assert array.shape == spec.shape
        memory[input_slot(spec.name)] = array
    sizes: dict[str, int] = {}
    for spec in (*signature.outputs, *signature.gradients):
        end = spec.offset + _nbytes(spec.shape, spec.dtype)
        sizes[spec.slot] = max(end, sizes.get(spec.slot, 0))
    return memory | {slot: np.full(nbytes, 0xFF, np.uint8) for slot, nbytes in sizes.items()}


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * DTYPES[dtype].nbytes


def _results(bundle: Bundle, memory: Mapping[str | None, np.ndarray], order: str) -> Ran:
    signature = bundle.built.signature

    def at(slot: str, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        held = memory[slot][offset : offset + _nbytes(shape, dtype)]
        there = held.view(np.dtype(dtype).newbyteorder(order))
        return there.astype(dtype).reshape(shape)

    def result(spec: OutputSpec) -> np.ndarray:
        return at(spec.slot, spec.offset, spec.shape, spec.dtype)

    return Ran(
        [result(spec) for spec in signature.outputs],
        {spec.name: result(spec) for spec in signature.gradients},
        {
            spec.name: at(input_slot(spec.name), 0, spec.shape, spec.dtype)
            for spec in (*signature.arguments, *signature.state)
            if spec.inplace
        },
    )


# --- the C program ----------------------------------------------------------------------------

_HEAD = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  void *data; int32_t device, device_id, ndim; uint8_t code, bits; uint16_t lanes;
  int64_t *shape, *strides; uint64_t byte_offset;
} DLTensor;
typedef struct { int32_t type, padding; DLTensor *value; } Any;
typedef int Kernel(void *handle, const Any *arguments, int32_t count, Any *result);
typedef struct { void *sync; int32_t tasks; } Group;

enum { TASKS = 3 };

static int TVMBackendParallelLaunch(int (*task)(int, Group *, void *), void *data, int tasks) {
  Group group = {0, tasks ? tasks : TASKS};
  int failed = 0;
  for (int i = 0; i < group.tasks; i++) failed |= task(i, &group, data);
  return failed;
}
static void *TVMBackendAllocWorkspace(int kind, int id, uint64_t size, int code, int bits) {
  return aligned_alloc(64, (size + 63) / 64 * 64);
}
static int TVMBackendFreeWorkspace(int kind, int id, void *memory) { free(memory); return 0; }
"""

_MAIN = """
int main(void) {
  void *memory[SLOTS];
  FILE *before = fopen("before", "rb"), *after = fopen("after", "wb");
  for (int i = 0; i < SLOTS; i++) {
    memory[i] = aligned_alloc(64, (sizes[i] + 64) / 64 * 64);
    if (fread(memory[i], 1, sizes[i], before) != sizes[i]) return 2;
  }
  for (unsigned i = 0; i < sizeof tensors / sizeof *tensors; i++)
    tensors[i].data = (char *)memory[slots[i]] + offsets[i];
  Any result = {0};
#define RUN(kernel, first, count) if (kernel(0, arguments + first, count, &result)) return 3;
  STEPS
  for (int i = 0; i < SLOTS; i++) fwrite(memory[i], 1, sizes[i], after);
  return fclose(after) ? 4 : 0;
}
"""


def _driver(bundle: Bundle, memory: Arrays) -> str:
    steps, pointers = bundle.built.steps, bundle.manifest()["imports"]["pointers"]
    operands = list(dict.fromkeys(o for step in steps for o in step.operands))
    number = {operand: i for i, operand in enumerate(operands)}
    names = list(memory)
    arguments: list[str] = []
    calls = [f"{p} = (void *){p.removeprefix('__')};" for p in pointers]
    for step in steps:
        if isinstance(step, CopyStep):
            calls.append(_copy(number, step))
            continue
        given = [f"{{7, 0, tensors + {number[o]}}}" for o in step.operands]
        given += [f"{{1, 0, (DLTensor *){n}}}" for n in step.numbers]
        calls.append(f"RUN(__tvm_ffi_{step.symbol}, {len(arguments)}, {len(given)})")
        arguments += given
    lines = [
        _HEAD,
        *(f"extern Kernel __tvm_ffi_{symbol};" for symbol in bundle.objects),
        *(f"extern void *{pointer};" for pointer in pointers),
        *map(_extents, range(len(operands)), operands),
        f"enum {{ SLOTS = {len(names)} }};",
        _table("const uint64_t sizes", [a.nbytes for a in memory.values()]),
        _table("DLTensor tensors", map(_tensor, range(len(operands)), operands)),
        _table("const int slots", [names.index(o.slot) for o in operands]),
        _table("const int64_t offsets", [o.offset for o in operands]),
        _table("const Any arguments", arguments),
        _MAIN.replace("STEPS", "\n  ".join(calls)),
    ]
    return "\n".join(lines)


def _copy(number: Mapping[Operand, int], step: CopyStep) -> str:
    target, source = (f"tensors[{number[o]}].data" for o in (step.target, step.source))
    return f"memmove({target}, {source}, {_nbytes(step.source.shape, step.source.dtype)});"


def _table(declared: str, rows) -> str:
    return f"static {declared}[] = {{{', '.join(map(str, rows))}}};"


def _extents(i: int, operand: Operand) -> str:
    shape = operand.shape
    strides = [int(np.prod(shape[k + 1 :])) for k in range(len(shape))]
    return _table(f"int64_t extents{i}", [*shape, *strides, 0])


def _tensor(i: int, operand: Operand) -> str:
    row, rank = DTYPES[operand.dtype], len(operand.shape)
    described = f"1, 0, {rank}, {row.code}, {row.bits}, 1"
    return f"{{0, {described}, extents{i}, extents{i} + {rank}, 0}}"
