"""Reading a store: its shards as mapped files, rows as labelled arrays, and shuffled batches for training."""
