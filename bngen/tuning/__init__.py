"""Knobs found by measuring: the search, and the files that keep what it finds."""
