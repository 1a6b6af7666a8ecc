"""The version, where both the build backend and `bngen --version` read it; imports nothing."""

__version__ = "0.1.0"
