"""gs.generate: decoding with a KV cache, with edits; sampling, stopping, and the Generation class.

May import run and the rooms below it.
"""
