"""gs.path_sweep: a sender's effect through chosen receivers alone. Imports sweeps and run."""
