"""Scripts that make and measure nano and its dictionary: corpus, tokenizer, training, evaluation. The package never
imports them.
"""
