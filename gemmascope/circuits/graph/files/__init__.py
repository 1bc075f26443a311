"""Files of graphs: our own, with every number, and those of Neuronpedia."""
