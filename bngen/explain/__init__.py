"""Explanations: what a program has become and why, as data, as text and as a page.

In: a program and what `codegen`, `passes` and `plan` have decided of it, or the manifest of a
bundle. Out: a `report.Report`. Nothing is decided here, nothing is compiled, and nothing is run:
TVM is not needed for a target that is known already.
"""
