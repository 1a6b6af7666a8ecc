"""What a run of the tests is for: each change (quick), or whatever there is to find (thorough)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings

from bngen.compiler import FUSION_LEVELS

THOROUGH = settings.default.max_examples > 100
LEVELS = FUSION_LEVELS if THOROUGH else ("none", "icf")
"""Fusion levels of tests that compile; drawn programs go through all of them in every run."""


def some(cases: Sequence[Any], count: int) -> Sequence[Any]:
    """All of them in a thorough run, else the first ``count``."""
    return cases if THOROUGH else cases[:count]


def takes_long(why: str) -> pytest.MarkDecorator:
    """Mark a test for thorough runs alone."""
    reason = f"{why}; HYPOTHESIS_PROFILE=thorough runs it"
    return pytest.mark.skipif(not THOROUGH, reason=reason)
