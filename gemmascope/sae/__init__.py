"""Sparse dictionaries (SAEs and transcoders): loading them, encoding a run, splicing features, gs.feature_sweep. Imports
sweeps, run and figures.
"""
