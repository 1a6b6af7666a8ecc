"""Programs that are nearly right: refused in one line and in time, or well-formed, and they run.

Whatever is drawn comes from the number of the example alone: a failure names it.
"""

from __future__ import annotations

import math
import random
import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen import models
from bngen.dtypes import DTYPES
from bngen.errors import BngenError
from bngen.ir import interp
from bngen.ir.attributes import KINDS
from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.ops import OPS
from bngen.ir.ops.row import ShapeError
from bngen.ir.text import MOST_TEXT, parse_graph
from bngen.ir.types import TensorType
from bngen.ir.verify import verify
from bngen.lang.gradients import grad
from tests.ir.mutations import mutated, text_of_nothing
from tests.ir.op_cases import CASES, MAP, Case, case, normal, positive

AT_ONCE = 40
"""Mutations that one example of Hypothesis stands for: drawing costs more than parsing."""
SECONDS = 5.0
MOST_WORK = 2**22
"""Elements of a node that is still run."""
_VECTORS = normal(3), positive(3), normal(3)
ALL = [
    *CASES,
    # Their operands depend on each other, so that meanings are tested elsewhere.
    case("batch_norm_grad", normal(*MAP), normal(*MAP), *_VECTORS),
    case("bn_grad_input", normal(*MAP), normal(*MAP), *_VECTORS, normal(3), normal(3), count=40),
]
SMALL = [str(c.graph) for c in ALL]
numbers = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def networks() -> list[str]:
    """Built-in networks, with losses and with gradients."""
    program = models.make("tiny_densenet", batch=2, image=32, loss=True)
    others = [models.make(n, batch=2, image=64) for n in ("resnet18", "mobilenet_v2")]
    return [str(p.graph) for p in (*others, program, grad(program))]


# --- what a text may do -------------------------------------------------------------------------


def check_text(text: str) -> Graph | None:
    """The program of a text, or None where it is refused as it should be."""
    started = time.process_time()
    try:
        graph = parse_graph(text)
    except BngenError as error:
        assert str(error).startswith(("line ", "a text of ")) and len(str(error)) < 1000
        return None
    finally:
        assert time.process_time() - started < SECONDS
    verify(graph, "parsing")
    assert parse_graph(str(graph)) == graph
    return graph


def check_run(graph: Graph) -> None:
    """A well-formed program runs in the interpreter, unless it is too large to."""
    if all(_work(node) <= MOST_WORK for node in graph.nodes):
        interp.run(graph, _arguments(graph))
        interp.run(graph, _arguments(graph), "float64")


def _arguments(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {i.name: rng.integers(0, 3, i.value.shape).astype(i.value.dtype) for i in graph.inputs}


def _work(node: Node) -> int:
    """No less than what the interpreter holds of a node at once: padded maps, windows, matrices."""
    shapes = [v.shape for v in (*node.operands, *node.outputs)]
    shapes += [node.attrs[a] for a in ("shape", "kernel") if a in node.attrs]
    largest = max(map(math.prod, shapes), default=0)
    if OPS[node.op].kind not in ("contract", "window"):
        return largest
    maps = [s for s in shapes if len(s) == 4]
    sides = max(node.attrs.get("padding", (0,)))
    windows = [node.attrs.get("kernel", ()), *(s[2:] for s in maps if "groups" in node.attrs)]
    axes = [e for s in maps for e in s[2:]] + [1]
    return max(
        largest * max(math.prod(w) for w in windows if w or len(windows) == 1),
        *(s[0] * s[1] * (s[2] + 2 * sides) * (s[3] + 2 * sides) for s in maps),
        max(axes) ** 2 if "output_size" in node.attrs else 0,
    )


@given(numbers)
def test_mutations_of_single_ops(number: int):
    for rng in (random.Random(f"{number} {i}") for i in range(AT_ONCE)):
        graph = check_text(mutated(rng.choice(SMALL), rng))
        if graph is not None:
            check_run(graph)


@given(numbers)
def test_mutations_of_networks(networks: list[str], number: int):
    rng = random.Random(number)
    check_text(mutated(rng.choice(networks), rng))


@given(numbers)
def test_tokens_in_no_order(number: int):
    for rng in (random.Random(f"{number} {i}") for i in range(AT_ONCE)):
        check_text(text_of_nothing(rng))


_LINE = "program p {{\n  input x : f32[2,3]\n  {}\n  return x\n}}\n"
HOSTILE = {
    "nested tuples": "y = exp(x) {a=" + "(" * 3000 + ")" * 3000 + "} : f32[2,3]",
    "nested parentheses": "y = exp(" + "(" * 3000,
    "nested brackets": "input y : f32" + "[" * 3000,
    "a long number": f"input y : f32[{'9' * 5000}]",
    "a longer number": f"input y : f32[{'9' * 1_000_000}]",
    "a long float": f"c = constant() {{value=1.{'3' * 5000}}} : f32[]",
    "a long name": f"{'y' * 1_000_000} = exp(z) : f32[2,3]",
    "an op with a long name": f"y = {'y' * 1_000_000}(x) : f32[2,3]",
    "many operands": f"y = cat({'x, ' * 100_000}x) {{axis=0}} : f32[2,3]",
    "many attributes": f"y = exp(x) {{{', '.join(f'a{i}=1' for i in range(50_000))}}} : f32[2,3]",
    "many types": f"y = exp(x) : {', '.join(['f32[1]'] * 100_000)}",
    "many axes": f"input y : f32[{'1,' * 100_000}]",
    "many results": f"return {'x, ' * 100_000}",
    "quotes": "'" * 1_000_000,
    "escapes": "'" + "\\" * 1_000_000,
    "many updates": "\n".join(["update x = x"] * 100_000),
    "an operand that is missing": "y = conv2d(_, x) : f32[2,3]",
    "one of several that is missing": "y = cat(x, _) : f32[2,6]",
    "an attribute twice": "y = sum(x) {axes=(0,), axes=(1,)} : f32[2]",
    "a shape of 2^64 elements": "input y : f32[4294967296,4294967296]",
    "a shape without elements": "input y : f32[2,0]",
    "a result without elements": "y = slice(x) {start=1, stop=1} : f32[2,0]",
    "the update of no input": "y = exp(x) : f32[2,3]\n  update y = x",
    "an update of another type": "y = sum(x) {axes=(0,)} : f32[3]\n  update x = y",
    "an init that is none": "parameter y : f32[2] init=3",
    "a label twice": "return a = x, a = x",
    "half a character": "input '\\ud800' : f32[2]",
    "no character": "input '\\U00110000' : f32[2]",
    "an unknown escape": "input '\\N{BULLET}' : f32[2]",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_lines(what: str):
    assert check_text(_LINE.format(HOSTILE[what])) is None


def test_texts_that_are_none():
    for text in ("", "\n" * 1_000_000, " " * 1_000_000, "#" * 1_000_000, "\x00", "\ufeff"):
        assert check_text(text) is None
    for text in (None, b"program p {\n  return\n}\n", "x" * (MOST_TEXT + 1)):
        with pytest.raises(BngenError, match="text"):
            parse_graph(text)


def test_a_large_program_is_read_in_time():
    lines = [f"  y{i + 1} = exp(y{i}) : f32[2]" for i in range(5_000)]
    text = "\n".join(["program p {", "  input y0 : f32[2]", *lines, "  return y5000", "}"])
    assert len(check_text(text).nodes) == 5_000


# --- what an op may be applied to ---------------------------------------------------------------

WILD = (
    0, -1, 1, 2, 3, 2**31, 2**32, 2**63 - 1, 2**63, 10**30, 10**5000, -(10**5000), 0.5, 1e308,
    math.nan, math.inf, True, None, "x", "float32", "int64", (), (1,), (1, 2), (1, 1, 1, 1),
    (2.0, 1.0), ((1,),), ("a",), [1, 2], b"x", {}, object(), np.float32(1), np.int64(3),
    np.zeros(3),
)  # fmt: skip
SIDES = (0, 1, 2, 3, 4, 5, 7, -1, 2**31 - 1, 2**31, 2**40, 2**62)


def _other_shape(shape: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    extents = list(shape)
    match rng.randrange(5):
        case 0 if extents:
            extents[rng.randrange(len(extents))] = rng.choice(SIDES)
        case 1:
            extents.insert(rng.randint(0, len(extents)), rng.choice(SIDES[1:6]))
        case 2 if extents:
            extents.pop(rng.randrange(len(extents)))
        case 3:
            rng.shuffle(extents)
        case _ if extents:
            extents[rng.randrange(len(extents))] = rng.choice(extents)
    return tuple(extents)


def _other_value(value: object, rng: random.Random) -> object:
    if isinstance(value, tuple) and value and rng.randrange(3):
        i = rng.randrange(len(value))
        return (*value[:i], *rng.choice([(rng.choice(SIDES),), ()]), *value[i + 1 :])
    if type(value) is int and rng.randrange(3):
        return rng.choice((*SIDES, 6, 8, 12, 40))
    return rng.choice(WILD)


def _applied(row: Case, rng: random.Random) -> Graph:
    """A case with one to three of its types and attributes changed.

    Raises:
        ShapeError: where that is not allowed.
    """
    types = [o and o.type for o in row.operands]
    attrs, defaults = dict(row.attrs), OPS[row.op].defaults
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(types)) if types else None
        match rng.randrange(5):
            case 0 if types and types[i]:
                types[i] = TensorType(_other_shape(types[i].shape, rng), types[i].dtype)
            case 1 if types and types[i]:
                types[i] = TensorType(types[i].shape, rng.choice([*DTYPES]))
            case 2:
                dtype = rng.choice([*DTYPES])
                types = [t and TensorType(t.shape, dtype) for t in types]
            case 3 if types:
                types = rng.choice(
                    [types[:-1], [*types, types[i]], types[::-1], [None, *types[1:]]]
                )
            case _ if defaults:
                name = rng.choice(sorted(defaults))
                attrs[name] = _other_value({**defaults, **attrs}[name], rng)
    b = GraphBuilder(name=row.op)
    values = [t and b.input(f"x{i}", t) for i, t in enumerate(types)]
    results = b.emit(row.op, *values, **attrs)
    return b.finish(results if isinstance(results, tuple) else (results,))


@given(numbers)
def test_mutations_of_types_and_attributes(number: int):
    for rng in (random.Random(f"{number} {i}") for i in range(AT_ONCE)):
        try:
            graph = _applied(rng.choice(ALL), rng)
        except ShapeError as error:
            assert len(str(error)) < 1000
            continue
        verify(graph)
        assert parse_graph(str(graph)) == graph
        check_run(graph)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_runs_on_an_element_type_or_refuses_it(dtype: str):
    refused = set()
    for row in ALL:
        b = GraphBuilder(name=row.op)
        types = [o and TensorType(o.type.shape, dtype) for o in row.operands]
        values = [t and b.input(f"x{i}", t) for i, t in enumerate(types)]
        try:
            results = b.emit(row.op, *values, **row.attrs)
        except ShapeError:
            refused.add(row.op)
            continue
        graph = b.finish(results if isinstance(results, tuple) else (results,))
        verify(graph)
        check_run(graph)
    others = {"max_pool2d_grad", "one_hot", "random_uniform", "where"}  # of several types
    assert refused == others if DTYPES[dtype].is_float else "conv2d" in refused


def test_every_attribute_of_every_op_is_declared():
    assert set(KINDS) == set(chain.from_iterable(row.defaults for row in OPS.values()))
    b = GraphBuilder()
    for row in ALL:
        for name in OPS[row.op].defaults:
            values = [o and b.input("x", o.type) for o in row.operands]
            with pytest.raises(ShapeError, match=f"{name} must be "):
                b.emit(row.op, *values, **{**row.attrs, name: object()})


_INPUTS = """program p {
  input x : f32[2,3,6,6]
  input w : f32[4,3,3,3]
  input d : f32[2,4,4,4]
  input dp : f32[2,3,3,3]
  input ip : i32[2,3,3,3]
  input s : f32[]
  input v : f32[3]
  input u : f32[5]
  input g : f32[4,3]
"""
_POOL = "{kernel=(2, 2), stride=(2, 2), shape=%s} : f32[%s]"
ILL_SHAPED = [
    ("conv2d_grad_input(d, w) {shape=(2, 3, 7, 6)} : f32[2,3,7,6]", "so dy must be like it"),
    ("conv2d_grad_input(d, w) {shape=(2, 4, 6, 6)} : f32[2,4,6,6]", "second axis must be 4"),
    ("conv2d_grad_input(d, w) {shape=(3, 3, 6, 6)} : f32[3,3,6,6]", "so dy must be like it"),
    ("conv2d_grad_weight(x, d) {shape=(4, 3, 5, 3)} : f32[4,3,5,3]", "so dy must be like it"),
    ("conv2d_grad_weight(x, d) {shape=(5, 3, 3, 3)} : f32[5,3,3,3]", "so dy must be like it"),
    ("conv2d_grad_weight(x, d) {shape=(4, 3, 9, 9)} : f32[4,3,9,9]", "exceeds padded"),
    ("conv2d_grad_weight(x, d) {shape=(4, 3)} : f32[4,3]", "needs x"),
    ("max_pool2d_grad(dp, ip) " + _POOL % ("(2, 3, 8, 6)", "2,3,8,6"), "the index|an index"),
    ("max_pool2d_grad(dp, dp) " + _POOL % ("(2, 3, 6, 6)", "2,3,6,6"), "an index"),
    ("avg_pool2d_grad(dp) " + _POOL % ("(2, 3, 9, 6)", "2,3,9,6"), "so dy must be like it"),
    ("avg_pool2d_grad(dp) " + _POOL % ("(2, 3)", "2,3"), "needs x"),
    ("adaptive_avg_pool2d_grad(dp) {output_size=(2, 3), shape=(2, 3, 6, 6)} : f32[2,3,6,6]",
     "so dy must be like it"),
    ("adaptive_avg_pool2d(x) {output_size=(0, 3)} : f32[2,3,0,3]", "is no shape"),
    ("conv2d(x, w) {stride=(0, 1)} : f32[2,4,4,4]", "stride must be 2 integers from 1"),
    ("conv2d(x, w) {padding=(-1, 0, 0, 0)} : f32[2,4,3,4]", "padding must be 4 integers from 0"),
    ("conv2d(x, w) {padding=(1, 1)} : f32[2,4,6,6]", "padding must be 4 integers"),
    ("conv2d(x, w) {groups=0} : f32[2,4,4,4]", "groups must be an integer from 1"),
    ("max_pool2d(x) {kernel=(2, 2), stride=(2, 0)} : f32[1], i32[1]", "stride must be"),
    ("max_pool2d(x) {kernel=3, stride=(2, 2)} : f32[1], i32[1]", "kernel must be"),
    ("cast(x) {dtype='float16'} : f32[2,3,6,6]", "dtype must be one of"),
    ("constant() {value=1, dtype='half'} : f32[]", "dtype must be one of"),
    ("constant() {value=-1, dtype='uint8'} : u8[]", "constant of uint8 cannot be -1"),
    ("constant() {value=0.5, dtype='int32'} : i32[]", "constant of int32 cannot be 0.5"),
    ("constant() {value=1e39} : f32[]", r"constant of float32 cannot be 1e\+39"),
    ("hardtanh(x) {hi=1e39} : f32[2,3,6,6]", r"hi must be a number that float32 holds, got 1e\+39"),
    ("constant() {value='a'} : f32[]", "value must be a number"),
    ("random_uniform(v) {shape=(2,)} : f32[2]", "seed"),
    ("random_uniform(ip) {shape=(2,)} : f32[2]", "seed"),
    ("one_hot(ip) {classes=0} : f32[2,0,3,3,3]", "is no shape"),
    ("one_hot(s) {classes=3} : f32[3]", "labels must be integers"),
    ("reshape(x) {shape=(-1, 6)} : f32[36,6]", "shape must be a tuple of extents"),
    ("reshape(x) {shape=216} : f32[216]", "shape must be a tuple of extents"),
    ("broadcast_to(s) {shape=(4294967296, 4294967296)} : f32[1]", "is too large"),
    ("hardtanh(x) {lo=1.0, hi=0.0} : f32[2,3,6,6]", "lo 1.0 exceeds hi 0.0"),
    ("leaky_relu(x) {slope=nan} : f32[2,3,6,6]", "slope must be a number that float32 holds"),
    ("bn_grad_apply(x, d, v, v, v, v) : f32[2,3,6,6]", "one shape"),
    ("bn_grad_input(x, x, v, v, v, v, u) {count=72} : f32[2,3,6,6]", r"must have shape \[3\]"),
    ("bn_grad_sums(x, d, v) : f32[3], f32[3]", "one shape"),
    ("bn_grad_sums(x, x, u) : f32[5], f32[5]", r"must have shape \[3\]"),
    ("bn_var(x, u) : f32[3]", r"must have shape \[3\]"),
    ("bn_stats(v) : f32[3], f32[3]", "channel axis"),
    ("partial_sum(v) {row_groups=1} : f32[1,3]", "needs x"),
    ("partial_sum(x) {row_groups=3} : f32[3,3]", "3 groups do not divide the rows of each image"),
    ("bn_partial_stats(x) {row_groups=8} : f32[8,3], f32[8,3], f32[8,3]", "do not divide the rows"),
    ("bn_partial_mean(x) {row_groups=1} : f32[1,3], f32[1,3]", "do not divide the rows"),
    ("bn_partial_var(x, u) {row_groups=1} : f32[1,3]", r"must have shape \[3\]"),
    ("sum_groups(x) {images=2} : f32[2,3]", "needs partial results"),
    ("sum_groups(v) {images=2} : f32[2,3]", "needs partial results"),
    ("bn_merge_mean(v, v) {count=3} : f32[]", "partial results"),
    ("bn_merge_stats(g, v, g) {count=3} : f32[3], f32[3]", "one shape"),
    ("bn_scale(x, _) : f32[2,3,6,6]", "vectors"),
    ("bn_update(v, u, v, v, _) {count=3} : f32[3], f32[5]", "one shape"),
    ("bn_update(v, v, v, v, v) {count=3} : f32[3], f32[3]", "momentum must be a scalar"),
    ("bn_update(v, v, v, v, _) {count=0} : f32[3], f32[3]", "count must be an integer from 1"),
    ("bn_normalize(x, v, v, _, _) {eps=-1.0} : f32[2,3,6,6]", "eps must be a finite number, 0"),
    ("sum(x) {axes=1} : f32[2]", "axes must be a tuple"),
    ("sum(x) {axes=(1,), keepdims=1} : f32[2]", "keepdims must be True or False"),
]  # fmt: skip


@pytest.mark.parametrize("line, message", ILL_SHAPED, ids=[line for line, _ in ILL_SHAPED])
def test_programs_whose_shapes_contradict_each_other(line: str, message: str):
    results = ", ".join(f"y{i}" for i in range(line.rpartition(":")[2].count("[")))
    with pytest.raises(BngenError, match=rf"line 11: .*({message})"):
        parse_graph(f"{_INPUTS}  {results} = {line}\n  return x\n}}\n")
