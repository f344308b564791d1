"""Valid files, changed or damaged, and the commands that read them."""
