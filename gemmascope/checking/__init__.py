"""gs.check: whether this package is right about a model on the machine at hand, beside transformers and what is published.

Each step is a file in steps/. Imports every room but labs and the command line.
"""
