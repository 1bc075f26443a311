"""Grids of runs, each one edit away from a base run, and a metric: gs.sweep, and gs.attribute, which estimates one.

A spec (spec.py) and two prompts make pairs (pairs.py); the cells of a pair's grid become variants of its base run, which go
through the layers in one pass (sweep.py, variants.py); the result holds their metrics (result.py). May import `generation`,
`run`, `edits` and the rooms below them.
"""
