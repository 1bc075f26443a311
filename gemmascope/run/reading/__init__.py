"""Reading many sites of a run: those that a trace keeps, a site of all layers, and the cache of layers that ran again."""
