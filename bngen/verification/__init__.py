"""How far a compiled program may stray from exact, and on which inputs that is tried."""
