"""Text to token ids and back: the tokenizer, the libraries that read its files, and chat templates. Imports files."""
