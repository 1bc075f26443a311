"""Several grids from one pass: the metrics and sites of a sweep that asks for several, its result, and its file.

May import `sweeps` and what that may import.
"""
