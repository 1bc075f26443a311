"""Checkpoints as others write them: a folder, the hub, a model of transformers in memory; and the device and number
format to load to. Imports model and files.
"""
