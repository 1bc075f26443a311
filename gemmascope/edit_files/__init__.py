"""Edits in files: gs.save_edits writes those that hold no function as JSON, gs.open_edits reads them.

May import sae and the rooms below it.
"""
