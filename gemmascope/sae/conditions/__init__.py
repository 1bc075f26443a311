"""Conditions of edits that a dictionary decides. May import the rest of `sae` and what it may import."""
