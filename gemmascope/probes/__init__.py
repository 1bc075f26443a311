"""Probes over a store: `gs.probe`, with cross-validation by text, baselines and control tasks. May import `sae`, `steering`,
`stores` and the rooms below them.
"""
