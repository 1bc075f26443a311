"""Writing a store: from chunks of texts to rows, and from rows to shards on the disk."""
