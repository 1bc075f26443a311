"""How nano and its dictionary are made and measured: corpus, tokenizer, training, evaluation. Loaded by these scripts
alone, never by the package.
"""
