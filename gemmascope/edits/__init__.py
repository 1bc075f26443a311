"""Edits: changes to a run as data, the calls that make them (gs.patch, gs.ablate, gs.add, ...), and binding them to a
run. Imports loading and model.
"""
