"""Int8 weights and streaming: packed layers, int8 stores and their cache, and the stream that loads layers ahead of a pass.
Imports model, checkpoints and files.
"""
