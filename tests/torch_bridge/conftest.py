"""Builds of a session are kept for the session: many tests compile the same small models."""

import pytest
import torch


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compiling(session_cache, monkeypatch):
    """Dynamo from the beginning, and a cache that lives as long as the session."""
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(session_cache))
    monkeypatch.delenv("BNGEN_NO_CACHE", raising=False)
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
