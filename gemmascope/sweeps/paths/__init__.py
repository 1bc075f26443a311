"""gs.path_sweep: a sender's effect through chosen receivers only. May import the rest of `sweeps` and what it may import."""
