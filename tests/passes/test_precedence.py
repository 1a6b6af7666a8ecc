"""What planning keeps up to date instead of counting anew, against the count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.passes.arena import Arena
from bngen.passes.fusion.precedence import Precedence


@st.composite
def graphs(draw) -> list[list[int]]:
    """The predecessors of each node, all of them earlier."""
    count = draw(st.integers(2, 14))
    return [
        sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(count)
    ]


def inverse(predecessors: list[list[int]]) -> list[list[int]]:
    successors: list[list[int]] = [[] for _ in predecessors]
    for node, before in enumerate(predecessors):
        for other in before:
            successors[other].append(node)
    return successors


def reached(successors: list[list[int]], groups: list[set[int]], first: int) -> set[int]:
    """What ``first`` leads to, where a group is reached as a whole."""
    found, work = {first}, [first]
    while work:
        node = work.pop()
        group = next((g for g in groups if node in g), {node})
        for later in group | {s for member in group for s in successors[member]}:
            if later not in found:
                found.add(later)
                work.append(later)
    return found


@given(graphs(), st.data())
def test_what_waits_for_a_node_is_known_while_groups_are_made(predecessors, data):
    successors = inverse(predecessors)
    precedence, groups = Precedence(successors, predecessors), []
    nodes = range(len(predecessors))
    for _ in range(4):
        free = [n for n in nodes if not any(n in g for g in groups)]
        group = (
            data.draw(st.sets(st.sampled_from(free), min_size=2, max_size=4)) if free[1:] else set()
        )
        later = [reached(successors, [*groups, group], n) for n in nodes]
        if group and not any(
            n not in group and not group.isdisjoint(later[n]) and n in later[min(group)]
            for n in nodes
        ):
            precedence.join(sorted(group))
            groups.append(set(group))
        for first in nodes:
            downstream = precedence.after(first)
            expected = reached(successors, groups, first)
            for node in data.draw(st.permutations(nodes)):
                assert (node in downstream) == (node in expected)


def test_a_group_that_waits_for_itself_is_a_bug():
    """0 -> 1 -> 2, and 0 with 2 is to be one kernel."""
    precedence = Precedence([[1], [2], []], [[], [0], [1]])
    with pytest.raises(AssertionError, match="wait for itself"):
        precedence.join([0, 2])


def lowest(placed: list[tuple[int, int, int, int]], nbytes: int, begin: int, end: int) -> int:
    """The lowest byte from which on so many are free, looked for one by one."""
    busy = {b for lo, hi, b0, e0 in placed if b0 <= end and begin <= e0 for b in range(lo, hi)}
    at = 0
    while busy.intersection(range(at, at + nbytes)):
        at += 1
    return at


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), max_size=12),
)
def test_the_arena_gives_away_the_lowest_bytes_that_are_free(requests):
    arena, placed = Arena(), []
    for nbytes, a, b in requests:
        begin, end = sorted((a, b))
        at = arena.add(nbytes, begin, end)
        assert at == lowest(placed, nbytes, begin, end)
        placed.append((at, at + nbytes, begin, end))
        assert arena.nbytes == max(hi for _, hi, _, _ in placed)
