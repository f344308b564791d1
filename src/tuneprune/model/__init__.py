"""Models and tokenizers on disk: finding, checking, correcting and loading them."""
