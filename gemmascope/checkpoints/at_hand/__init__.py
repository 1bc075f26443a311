"""Finding the models that are on this machine already: gs.models. One file for each kind of place; only headers are read."""
