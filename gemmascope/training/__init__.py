"""Training of sparse dictionaries on the rows of a store: `gs.train_sae`. May import `sae`, `stores` and the rooms below
them.
"""
