"""One self-contained HTML page about what was done to a model and how far the result is from the original."""
