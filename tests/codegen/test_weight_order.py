"""Weight gradients in the weight's own order are turned over in registers, never lane by lane."""

from __future__ import annotations

import re

import pytest

import bngen as bg
from tests.profiles import some

LANE_BY_LANE = re.compile(r"\bv(p?scatter|p?gather|insertps|extractps)")


@pytest.mark.parametrize("cpu", some(["x86-64-v4", "x86-64-v3"], 1))
@pytest.mark.parametrize(
    ("size", "window", "stride"), [(8, 3, 1), (8, 3, 2), (6, 1, 1)], ids=["points", "3x3", "1x1"]
)
def test_no_lane_is_stored_by_itself(cpu, size, window, stride):
    def net(x, w):
        return bg.conv2d(bg.relu(x), w, padding=window // 2, stride=stride)

    x, w = bg.Tensor[4, 32, size, size], bg.Tensor[64, 32, window, window]
    made = bg.bundle(
        bg.trace(net, x, w).graph, target=f"llvm -mcpu={cpu}", grad=True, cache=False, emit=["asm"]
    )
    texts = [t for name, t in made.emit("asm").items() if "grad_weight" in name]
    assert texts
    for text in texts:
        assert not LANE_BY_LANE.search(text)
        assert re.search(r"\bv(shufps|unpck|perm|shuff)", text)
