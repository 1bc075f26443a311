"""Makes the workshop's notebooks, pictures and guide from their sources. The package never imports it."""
