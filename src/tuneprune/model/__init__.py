"""Models and tokenizers as they are on disk: found, checked, corrected and loaded."""
