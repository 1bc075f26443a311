"""gemmascope: look inside Gemma 2."""
