"""A kernel of the plan becomes an unscheduled TE function with stable block names.

In: a `Kernel` and the layouts of its values. Out: a `Lowered` function. Semantics only: no tile, no
thread, no vector is named here.
"""
