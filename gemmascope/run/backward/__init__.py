"""Backward passes of a metric: gradients at the sites of a run, and the relevance of RelP. May import what `run` may."""
