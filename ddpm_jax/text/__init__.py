"""Text: CLIP's tokenizer and vocabulary, prompts to token ids.

Nothing here imports JAX or `tokenizers` before a tokenizer is made.
"""
