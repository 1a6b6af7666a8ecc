"""Runs what `bngen.codegen` made: loads a library, owns its memory and threads, marshals calls.

This room imports no compiler room, so that a saved module runs where only the runtime is
installed. Importing the package is cheap; TVM is imported when something is first run.
"""
