"""What Model and Layer inherit: weights by name, and edits that a model keeps."""
