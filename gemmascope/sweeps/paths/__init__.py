"""gs.path_sweep: a sender's effect through chosen receivers only. Imports the rest of sweeps and the rooms it may import."""
