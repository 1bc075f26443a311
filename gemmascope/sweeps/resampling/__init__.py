"""Resampling of results over pairs of prompts: intervals by the bootstrap."""
