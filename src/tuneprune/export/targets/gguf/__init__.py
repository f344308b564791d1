"""GGUF files: which architecture of llama.cpp computes a model, its tensors and keys, its tokenizer, and the proof."""
