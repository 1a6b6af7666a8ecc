"""The graph language: nodes, ops and their meaning, text form, verifier, plan. NumPy only."""
