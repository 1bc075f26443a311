"""The network and one pass through it: layers over rows, attention, the layout of rows, the tap, key-value caches, and
the Model that every function takes. Imports tokens.
"""
