"""Copies between users' channels-last maps and channel blocks move whole vectors."""

from __future__ import annotations

import re

import pytest

import bngen as bg

NARROW = re.compile(
    r"\bv(movss|p?gather|insertps|insertf128|unpck[lh]p|shufp|permp|permilp|perm2f128|blendp|extractps)"
)


@pytest.mark.parametrize("channels", [24, 20], ids=["whole blocks", "a block with padding"])
def test_copies_load_and_store_vectors(channels):
    """Channels lie side by side in both: there is nothing to gather and nothing to shuffle."""
    graph = bg.trace(bg.silu, bg.Tensor[4, channels, 9, 9]).graph
    for memory_format, narrow in (("channels_last", False), ("contiguous_format", True)):
        made = bg.bundle(
            graph, target="llvm -mcpu=x86-64-v3", fusion="none", memory_format=memory_format,
            cache=False, emit=["asm"],
        )  # fmt: skip
        copies = [text for name, text in made.emit("asm").items() if "copy" in name]
        assert len(copies) == 2
        for text in copies:
            assert bool(NARROW.search(text)) == narrow
            assert narrow or re.search(r"vmov[au]ps\t\(.*, %ymm", text)
            assert narrow or re.search(r"vmov[au]ps\t%ymm\d+, .*\(", text)
