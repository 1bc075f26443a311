"""The Jacobian lens: what the stream after a layer goes on to do to the last one, on average over texts; fitting it, its
files, and reading a run with it.
"""
