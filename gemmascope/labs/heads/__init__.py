"""The head lab: the lab itself (lab), what is done to each head (desk), and its pictures (channels, detail, views). Imports
labs, views, analysis and the rooms below.
"""
