"""One run: its record and proof, and the table, model card and page made from them."""
