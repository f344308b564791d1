"""Hugging Face folders of quantised weights: what writes them, and the program that proves them."""
