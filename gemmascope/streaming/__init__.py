"""Layers that arrive while a pass computes: int8 weights, the store that holds them, and the stream that brings them
from files or host memory. Imports checkpoints and model.
"""
