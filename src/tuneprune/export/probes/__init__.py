"""Programs in fresh processes that measure a model's memory, or load it without tuneprune."""
