"""Plotly figures of labelled arrays: a figure takes an array, a title and a unit, and runs no model. Imports nothing of
the package but its top modules.
"""
