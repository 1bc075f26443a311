"""gs.generate: text from a model, token by token, with edits. Imports run and edits."""
