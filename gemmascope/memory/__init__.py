"""Memory: what models and passes take, what a machine has, and which layers stay on a device within a budget; gs.plan.
Imports streaming, checkpoints and model.
"""
