"""Triton kernels for CUDA: the pointwise functions of the forward, attention, and the products of int8 weights.

Plain torch computes the same everywhere else. `switch.py` decides, by device; nothing outside this room imports Triton.
Imports only the top-level modules.
"""
