"""The network, and one pass through it: layers, attention, the layout of rows, taps, KV caches, and the Model class.

May import figures, tokens, files and the top-level modules.
"""
