"""Schedules: HOW a lowered kernel runs. Rules are code, knobs are data.

In: a `Lowered` function, a `Target`, knobs. Out: a scheduled module. A schedule never changes a
result beyond the order of a sum.
"""
