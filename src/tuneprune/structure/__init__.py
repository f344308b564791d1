"""The vocabulary: what a model is, what may be removed, what was decided. Imports torch only."""
