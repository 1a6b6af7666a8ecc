"""The instructions LLVM really emits for a target: wide vectors, contraction, nothing foreign."""

import collections
import re

import pytest

from bngen.runtime import host
from bngen.target.parse import Target

pytestmark = pytest.mark.skipif(host.architecture() != "x86_64", reason="reads x86-64 assembly")


def multiply_accumulate(target):
    """A register tile of a matrix product, scheduled as the kernels of bngen are."""
    import tvm
    from tvm import te

    lanes, rows, depth = target.channel_block, 8, 64
    a = te.placeholder((rows, depth), name="a")
    b = te.placeholder((depth, lanes), name="b")
    k = te.reduce_axis((0, depth), name="k")
    c = te.compute((rows, lanes), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([a, b, c]).with_attr("tirx.noalias", True))
    block = schedule.get_sblock("c")
    i, j, k = schedule.get_loops(block)
    schedule.reorder(k, i, j)
    store = schedule.cache_write(block, 0, "local")
    schedule.vectorize(schedule.get_loops(store)[-1])
    schedule.vectorize(j)
    schedule.unroll(i)
    schedule.decompose_reduction(block, k)
    return tvm.compile(schedule.mod, target=target.tvm())


def instructions(target):
    """The packed arithmetic of the kernel as ``(mnemonic, register file)`` pairs, counted.

    Which operand a fused multiply-add overwrites (132, 213 or 231) is the register allocator's
    choice, and differs by CPU.
    """
    text = multiply_accumulate(target).mod.inspect_source("asm")
    found = re.findall(
        r"^\s+(v?fmadd|v?mul|v?add)(?:132|213|231)?ps\s.*%([xyz]mm)", text, re.MULTILINE
    )
    return collections.Counter(found), set(re.findall(r"%([xyz]mm)\d", text))


def test_native_emits_its_widest_vectors():
    target = Target.parse("llvm -mcpu=native")
    widest = {16: "zmm", 8: "ymm", 4: "xmm"}[target.channel_block]
    arithmetic, _ = instructions(target)
    assert {register for _, register in arithmetic} == {widest}
    if target.fma:
        assert {mnemonic for mnemonic, _ in arithmetic} == {"vfmadd"}


@pytest.mark.parametrize("cpu", ["x86-64-v4", "skylake-avx512", "znver4", "sapphirerapids"])
def test_avx512_targets_use_512_bit_registers(cpu):
    arithmetic, _ = instructions(Target.parse(f"llvm -mcpu={cpu}"))
    assert set(arithmetic) == {("vfmadd", "zmm")}


def test_v3_contracts_into_256_bit_fma_and_touches_no_wider_register():
    arithmetic, registers = instructions(Target.parse("llvm -mcpu=x86-64-v3"))
    assert set(arithmetic) == {("vfmadd", "ymm")}
    assert "zmm" not in registers


def test_without_fma_nothing_is_contracted():
    arithmetic, registers = instructions(Target.parse("llvm -mcpu=x86-64-v3 -mattr=-fma"))
    assert set(arithmetic) == {("vmul", "ymm"), ("vadd", "ymm")}
    assert "zmm" not in registers


def test_baseline_stays_with_sse():
    arithmetic, registers = instructions(Target.parse("llvm"))
    assert set(arithmetic) == {("mul", "xmm"), ("add", "xmm")}
    assert registers == {"xmm"}
