"""The tokenizer: text to token ids and back, the files it is read from, and chat templates.

May import files and the top-level modules.
"""
