"""How much memory models and passes take, what a machine has, and what stays on a device within a budget; gs.plan.
Imports streaming and model.
"""
