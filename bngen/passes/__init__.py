"""Graph to graph: differentiation, fission, simplification, fusion, layout, memory. NumPy only."""
