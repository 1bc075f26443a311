"""Sparse dictionaries (SAEs and transcoders): loading them, encoding a run, splicing features and `gs.feature_sweep`. May
import `steering`, `analysis`, `sweeps`, `run` and the rooms below them.
"""
