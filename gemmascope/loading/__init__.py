"""gs.load and gs.quantize: a source turned into a Model, resident or streamed. Imports checkpoints, streaming and
memory.
"""
