"""Results as values, tables, figures and files: rendering, no measuring."""
