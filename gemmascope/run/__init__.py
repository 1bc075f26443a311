"""Runs: passes, gs.trace and what it keeps, layers that are run again, gradients, metrics of a run's logits, and traces
in files. Imports edits.
"""
