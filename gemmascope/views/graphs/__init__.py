"""The attribution graph as a picture: which nodes and edges it shows, and what it says of each."""
