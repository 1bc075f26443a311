"""Reading checkpoints: from a folder, the hub, or a transformers model in memory; and the device and dtype to load to.
Imports model and files.
"""
