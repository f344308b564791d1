"""Files, folders, locks, processes and signals: everything below the models."""
