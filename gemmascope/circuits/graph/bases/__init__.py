"""What the nodes of a graph can be: features of dictionaries, or neurons."""
