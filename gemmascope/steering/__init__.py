"""Directions in the stream and steering with them: `gs.direction`, its linear probe, and `gs.strength_sweep`. May import
`sweeps`, `generation`, `run` and the rooms below them.
"""
