"""The metrics of gs: of answers, of another run's distribution, of a text's tokens, and a user's function at positions.

gemmascope/sweeps/metrics.py makes them. May import `run` and the rooms below it.
"""
