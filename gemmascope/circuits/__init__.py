"""Circuits: attribution graphs, and what they share with other estimates of who sent what to whom.

frozen.py holds the arithmetic of a run whose attention patterns and norm scales are held at their values; graph/ builds
attribution graphs with it. edges/ scores the edges between heads, MLPs, embedding and logits. jacobian/ holds the Jacobian
lens: fitting it, its files, and reading with it.
"""
