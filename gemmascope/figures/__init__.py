"""Plotly figures. Each takes labelled arrays (xarray), a title and a unit; it runs no model and knows no result class. May
import only the package's single-file modules and tokens.
"""
