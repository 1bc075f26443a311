"""Edges between the embedding, heads, MLPs and logits: their scores, circuits of them, and how faithful those are.

nodes.py names what writes to the stream and what reads it, and contributions.py has what each wrote. estimates.py scores
edges by gradients, exact.py by runs. May import the rest of `circuits` and what it may import.
"""
