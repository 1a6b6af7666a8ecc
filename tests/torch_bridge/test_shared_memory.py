"""Ranks of one machine exchange arrays through memory: what is asked for, whatever is drawn."""

import os
from pathlib import Path

import numpy as np
import pytest

from bngen.runtime import ring, shared_memory
from bngen.runtime.communicator import CallError, waiting_for
from bngen.runtime.ring import MOST_BYTES
from bngen.torch_bridge import distributed
from tests.profiles import THOROUGH
from tests.torch_bridge.processes import Started, joined

RANKS = 3
DTYPES = ["f4", "f8", "i8"]


def drawn(seed: int) -> list[tuple[str, list[np.ndarray]]]:
    """What is exchanged, in order: a kind, and an array of each rank."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(120):
        kind, dtype = rng.choice(["sum", "gather"]), np.dtype(rng.choice(DTYPES))
        most = MOST_BYTES // dtype.itemsize
        count = int(rng.choice([0, 1, 7, rng.integers(most), most, most + 1]))
        rows = rng.integers(-9, 9, (RANKS, count)).astype(dtype)
        found.append((kind, list(rows if kind == "sum" else rows.view(np.uint8))))
    return found


def exchange(rank: int, folder: str) -> None:
    """All of it, several at once and finished in any order."""
    joined(rank, RANKS, folder)
    carrier = distributed.carrier_named(distributed.group_of(None).group_name)
    shares = os.environ["BNGEN_SHARED_MEMORY"] == "1"
    assert isinstance(carrier, shared_memory.Shared) == shares
    if shares and rank == 0:
        assert not (shared_memory.FOLDER / carrier.memory.name).exists()
    rng, under_way = np.random.default_rng(rank), []
    for kind, rows in drawn(0):
        work = getattr(carrier, kind)(rows[rank].copy())
        want = np.add.reduce(rows) if kind == "sum" else np.stack(rows)
        under_way.append((work, want))
        while len(under_way) > rng.integers(14):
            work, want = under_way.pop(rng.integers(len(under_way)))
            got = work.result()
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype
    for work, want in under_way:
        np.testing.assert_array_equal(work.result(), want)


def run(job: str, tmp_path: Path) -> Started:
    return Started(f"import {__name__} as t; t.{job}", RANKS, tmp_path / "cache")


@pytest.mark.parametrize("shares", ["1", "0"] if THOROUGH else ["1"])
def test_sums_and_gathers_are_those_of_all_ranks(tmp_path, monkeypatch, shares):
    monkeypatch.setenv("BNGEN_SHARED_MEMORY", shares)
    with run(f"exchange({{}}, {str(tmp_path)!r})", tmp_path) as started:
        started.all_well()


def one_cannot(rank: int, folder: str) -> None:
    """One rank has no compiler, does not want to, lies elsewhere; or there is no room."""
    joined(rank, RANKS, folder)
    group = distributed.group_of(None)
    made, places = [], shared_memory.FOLDER
    shared_memory.secrets.token_hex = lambda _: (
        made.append(f"{os.getpid()}-{len(made)}") or made[-1]
    )

    def far() -> bool:
        carrier = distributed._carrier_of(group)
        total = carrier.sum(np.ones(3, np.float32)).result()
        np.testing.assert_array_equal(total, np.full(3, RANKS))
        return isinstance(carrier, distributed.Carrier)

    if rank == 1:
        ring.library = lambda: None
    assert far()
    ring.library = LIBRARY
    os.environ["BNGEN_SHARED_MEMORY"] = "10"[rank == 0]
    assert far()
    os.environ["BNGEN_SHARED_MEMORY"] = "1"
    shared_memory.FOLDER = Path(folder) if rank == 2 else places
    assert far()
    shared_memory.FOLDER, ring.bytes_of = places, lambda size: 1 << 60
    assert far()
    ring.bytes_of = BYTES
    assert not far()
    assert not [name for name in made if (places / f"bngen-{name}").exists()]
    assert bool(made) == (rank == 0)


LIBRARY, BYTES = ring.library, ring.bytes_of


def test_where_one_cannot_none_does(tmp_path):
    with run(f"one_cannot({{}}, {str(tmp_path)!r})", tmp_path) as started:
        started.all_well()


def other_length(rank: int, folder: str) -> None:
    """Ranks that were not asked whether they agree send arrays of different lengths."""
    joined(rank, RANKS, folder)
    carrier = distributed.carrier_named(distributed.group_of(None).group_name)
    with pytest.raises(CallError, match=r"rank \d sent \d+ bytes, not \d+"):
        with waiting_for("a sum", carrier):
            carrier.sum(np.ones(rank + 1, np.float32)).result()
    for begin in (carrier.sum, carrier.gather):
        with pytest.raises(CallError, match=r"out of step since rank \d sent \d+ bytes"):
            with waiting_for("what comes next", carrier):
                begin(np.zeros(1, np.uint8))


def test_arrays_of_different_lengths_are_an_error(tmp_path):
    with run(f"other_length({{}}, {str(tmp_path)!r})", tmp_path) as started:
        started.all_well()
