"""Pages of single units - a feature, a head, a neuron - and folders of them with an index."""
