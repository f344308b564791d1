"""tuneprune: tune and structurally prune a Hugging Face decoder LLM for a domain, in one run."""

__version__ = "0.1.0"
