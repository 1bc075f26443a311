"""gs.load and gs.quantize: making a Model from a source, with its layers resident or streamed; and pickling models. Imports
checkpoints, streaming, memory, model and tokens.
"""
