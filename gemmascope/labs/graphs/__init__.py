"""The graph lab: the lab itself (lab), its settings (settings), building graphs step by step (building), what changes do
(truth), what the page shows (shown, state), and files and code (files). Imports labs, views, circuits and the rooms below.
"""
