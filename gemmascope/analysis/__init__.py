"""Reading a run and comparing models: the lens, direct logits, heads, composition, gs.compare. Imports sweeps and run."""
