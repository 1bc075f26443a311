"""Kernels: the pointwise functions of the forward, attention, and the products of int8 weights.

In Triton for CUDA (`pointwise.py`, `attention.py`, `int8.py`), in C++ for the CPU (`cpu/`, which has no attention). Plain
torch computes the same everywhere else. `switch.py` decides, by device; nothing outside this room imports Triton. Imports
only the top-level modules, and files.
"""
