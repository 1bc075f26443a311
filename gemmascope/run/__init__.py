"""Runs: gs.trace and the Trace class, passes, layers that run again, gradients, metrics, and traces in files.

May import edits and the rooms below it.
"""
