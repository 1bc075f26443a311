"""Benchmarks under edits: gs.evaluate runs tasks of lm-evaluation-harness on a model of this package.

Only harness.py imports lm_eval, when gs.evaluate is called. May import prompts and the rooms below it.
"""
