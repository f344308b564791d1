"""Hugging Face folders with quantised weights."""
