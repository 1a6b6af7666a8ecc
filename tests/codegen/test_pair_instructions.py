"""Sums of pairs of bfloat16 by themselves: each width of vectors, with and without instructions."""

import re

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import IRModule, s_tir, te

from bngen.codegen.pipeline import compile_module
from bngen.lower import pairs
from bngen.lower.stored import narrowed, rounded
from bngen.target.parse import Target

BF16 = np.dtype(ml_dtypes.bfloat16)
NATIVE = Target.parse("llvm -mcpu=native")
TERMS, ROWS = 6, 4


def compiled(tensors, vectors):
    """A function for this machine whose blocks ``vectors`` run along their last axis."""
    function = te.create_prim_func(tensors).with_attr("global_symbol", "main")
    sch = s_tir.Schedule(IRModule({"main": function}))
    for name in vectors:
        block = sch.get_sblock(name)
        row, lane, *terms = sch.get_loops(block)
        sch.reorder(row, *terms, lane)
        sch.vectorize(lane)
        if terms:
            sch.decompose_reduction(block, terms[0])
    library = compile_module(sch.mod, NATIVE.tvm())
    return library["main"], library.mod.inspect_source("s")


def called(function, *arrays, out):
    result = tvm.runtime.empty(*out)
    function(*map(tvm.runtime.tensor, arrays), result)
    return result.numpy()


def instructions(text):
    return set(re.findall(r"\b(v(?:dpbf16ps|cvtneps2bf16|cvtne2ps2bf16))[xyz]?\b", text))


@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
@pytest.mark.parametrize("odd", [False, True])
def test_sums(lanes, odd):
    """Of whole pairs, and where a condition leaves the last one out."""
    a = te.placeholder((ROWS, 2 * TERMS), "uint16", "a")
    b = te.placeholder((TERMS, lanes), "uint32", "b")
    k = te.reduce_axis((0, TERMS), "k")

    def term(i, lane):
        product = pairs.product(pairs.word(a(i, 2 * k), a(i, 2 * k + 1)), b(k, lane))
        return te.if_then_else(k < TERMS - 1, product, te.const(0, "float32")) if odd else product

    c = te.compute((ROWS, lanes), lambda i, lane: te.sum(term(i, lane), k), name="c")
    function, text = compiled([a, b, c], ["c"])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 2 * TERMS)).astype(BF16)
    y = rng.standard_normal((TERMS, lanes, 2)).astype(BF16)
    words = np.ascontiguousarray(y).view(np.uint32)[..., 0].copy()
    got = called(function, x.view(np.uint16), words, out=((ROWS, lanes), "float32"))
    kept = TERMS - odd
    pieces = x.reshape(ROWS, TERMS, 2).astype(np.float64)[:, :kept], y.astype(np.float64)[:kept]
    np.testing.assert_allclose(got, np.einsum("ikp,klp->il", *pieces), atol=1e-6)
    if "avx512bf16" in NATIVE.features and lanes > 1:
        assert instructions(text) == {"vdpbf16ps"}


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_words_and_halves_of_numbers(lanes):
    """To nearest, ties to even; NaN stays NaN; what is subnormal may become zero."""
    x, y = (te.placeholder((64, lanes), "float32", n) for n in "xy")
    near = "bfloat16"
    shape = (64, lanes)
    word = te.compute(
        shape,
        lambda i, j: pairs.pair(rounded(x(i, j), near), rounded(y(i, j), near)),
        name="word",
    )
    half = te.compute(shape, lambda i, j: pairs.half(rounded(x(i, j), near)), name="half")
    bits = np.random.default_rng(0).integers(0, 1 << 32, (2, *shape), np.uint32)
    bits[:, ::3] = bits[:, ::3] & 0xFFFF0000 | 0x8000  # halfway between two
    low, high = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        want = np.stack([low, high], -1).astype(BF16)
    function, words = compiled([x, y, word], ["word"])
    got = called(function, low, high, out=(shape, "uint32")).view(np.uint16).view(BF16)
    compare(got.reshape(*shape, 2), want)
    function, halves = compiled([x, half], ["half"])
    compare(called(function, low, out=(shape, "uint16")).view(BF16), want[..., 0])
    if "avx512bf16" in NATIVE.features:
        assert instructions(words) == {"vcvtne2ps2bf16"}
        assert instructions(halves) == {"vcvtneps2bf16"}


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_what_is_rounded_for_memory_and_for_more(lanes):
    """By the instruction that narrows: a number that is stored is taken from it as it is."""
    x, shape = te.placeholder((64, lanes), "float32", "x"), (64, lanes)
    near = te.compute(shape, lambda i, j: rounded(x(i, j), "bfloat16"), name="near")
    half = te.compute(shape, lambda i, j: narrowed(rounded(x(i, j), "bfloat16"), "bfloat16"),
                      name="half")  # fmt: skip
    bits = np.random.default_rng(1).integers(0, 1 << 32, shape, np.uint32)
    bits[::3] = bits[::3] & 0xFFFF0000 | 0x8000
    number = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        want = number.astype(BF16)
    function, text = compiled([x, near], ["near"])
    compare(called(function, number, out=(shape, "float32")), want)
    function, stored = compiled([x, half], ["half"])
    compare(called(function, number, out=(shape, "uint16")).view(BF16), want)
    if "avx512bf16" in NATIVE.features:
        assert instructions(text) == instructions(stored) == {"vcvtneps2bf16"}
        assert not re.search(r"vpslld|vpmovzxwd|vpmovdw", stored)


@pytest.mark.parametrize("lanes", [8, 16])
def test_gathers_are_rounded_as_vectors(lanes):
    """What is turned over on its way from memory is loaded in rows all the same."""
    x = te.placeholder((lanes, lanes), "float32", "x")
    turned = te.compute((lanes, lanes), lambda i, j: rounded(x(j, i), "bfloat16"), name="turned")
    function = te.create_prim_func([x, turned]).with_attr("global_symbol", "main")
    sch = s_tir.Schedule(IRModule({"main": function}))
    row, lane = sch.get_loops(sch.get_sblock("turned"))
    sch.unroll(row)
    sch.vectorize(lane)
    library = compile_module(sch.mod, NATIVE.tvm())
    text = library.mod.inspect_source("s")
    given = np.random.default_rng(0).standard_normal((lanes, lanes)).astype("f4")
    compare(called(library["main"], given, out=((lanes, lanes), "float32")), given.T.astype(BF16))
    if "avx512bf16" in NATIVE.features:
        assert len(re.findall(r"vcvtneps2bf16", text)) == lanes
        assert not re.search(r"vinsertps|vgather|vpinsr|vcvtneps2bf16\s+%xmm\d+, %xmm", text)


def compare(got, want):
    got, want = got.astype(np.float32), want.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    known = ~np.isnan(want)
    tiny = np.float32(np.finfo(np.float32).tiny)
    np.testing.assert_array_less(np.abs(got - want)[known & (got != want)], 2 * tiny)
