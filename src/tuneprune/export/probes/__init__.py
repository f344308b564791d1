"""Programs in fresh processes, and what they find in a model: its memory, and what it computes without tuneprune."""
