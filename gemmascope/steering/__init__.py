"""Directions in the stream and what they do: gs.direction, its probe, gs.strength_sweep. Imports sweeps, run and
generation.
"""
