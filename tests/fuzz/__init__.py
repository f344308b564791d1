"""Valid files, changed or damaged, and what reads them."""
