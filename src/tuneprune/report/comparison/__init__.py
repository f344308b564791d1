"""A comparison of methods: its record with means and intervals over seeds, and the tables, picture and page."""
