"""Top examples: the texts and positions where heads, neurons, features and directions are strongest, in one pass.

gs.top_examples goes over texts, or over a store, block by block. Each block is whole texts with the rows of one site; every
group of units reads its values from the rows, and keeps the strongest so far, a random sample, and statistics.
"""
