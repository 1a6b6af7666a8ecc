"""A new op needs a row in each table that has one an op: a missing one fails here, not a build.

The meaning's row is looked after in tests/ir/test_ops.py, the gradient's in
tests/passes/test_autodiff.py, PyTorch's in tests/torch_bridge/test_ops.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bngen
from bngen.ir.ops import OPS
from bngen.lower.gather import SOURCES
from bngen.lower.pointwise import EXPRESSIONS
from bngen.lower.sums import SUMS
from bngen.lower.window import POOLS
from bngen.passes.fission import FISSION, HOISTED, IN_PARTS
from tests.passes.test_autodiff import INTERNAL

LANG = Path(bngen.__file__).parent / "lang"


def ops_where(**facets) -> set[str]:
    return {op for op, row in OPS.items() if all(getattr(row, k) == v for k, v in facets.items())}


def test_every_pointwise_op_has_an_expression():
    """But those that are hoisted, of which no kernel ever sees one."""
    assert EXPRESSIONS.keys() == ops_where(kind="pointwise") - HOISTED.keys()


def test_every_index_map_has_a_source_and_every_window_stages():
    assert SOURCES.keys() == ops_where(gathers=True)
    assert POOLS.keys() == ops_where(kind="window")


def test_every_partial_reduction_has_stages():
    assert SUMS.keys() == ops_where(is_partial=True)


@pytest.mark.parametrize("one_sweep", [False, True])
@pytest.mark.parametrize("deferred", [False, True])
def test_every_coarse_op_is_split(one_sweep, deferred):
    assert FISSION[one_sweep, deferred].keys() == ops_where(kind="coarse")


def test_every_reduction_of_pixels_is_cut_into_parts():
    """What is neither a part itself nor made of parts."""
    whole = ops_where(kind="reduce", is_partial=False, merges=False)
    assert IN_PARTS.keys() == whole


def words_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}


def test_every_op_that_users_can_mean_is_spelled_by_the_language():
    said = set().union(*(words_of(path) for path in LANG.glob("*.py")))
    missing = OPS.keys() - INTERNAL - said
    # A copy is the layouts' word: users' values are not copied. The variance around a given mean
    # and the mean alone are sub-layers of two sweeps.
    assert missing == {"copy", "bn_mean", "bn_var"}


ROOMS = [
    "pointwise", "activations", "reductions", "windows", "windows1d", "shapes", "places",
    "image_norms", "loss", "regression",
]  # fmt: skip


@pytest.mark.parametrize("module", ROOMS)
def test_every_function_of_the_language_has_a_public_name(module):
    tree = ast.parse((LANG / f"{module}.py").read_text(encoding="utf-8"))
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    public = {n for n in functions if not n.startswith("_")}
    # of `windows`, for layers, and of losses, for one another
    inner = {"pair", "conv_padding", "check_reduction", "reduced"}
    assert public - inner <= set(bngen.__all__)
