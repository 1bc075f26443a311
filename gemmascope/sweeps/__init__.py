"""gs.sweep and gs.attribute: grids of runs, each one edit away from a base run, in one pass; their metrics, results and
journals. Imports run and edits.
"""
