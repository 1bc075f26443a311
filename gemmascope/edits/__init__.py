"""Edits: changes to a run as data, the calls that make them (gs.patch, gs.ablate, gs.add, ...), and their binding to a run.

May import loading and the rooms below it.
"""
