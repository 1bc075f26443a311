"""Trains sparse dictionaries on nano: autoencoders of a site, and transcoders from an MLP's input to its output."""
