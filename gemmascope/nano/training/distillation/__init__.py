"""What a small model learns from a larger one, beside the texts. The package never imports it."""
