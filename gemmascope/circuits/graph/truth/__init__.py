"""What a graph says beside what the model does when nodes are changed."""
