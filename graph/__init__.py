"""What a graph means: its table, its head, its projections and layers, and the file it came from."""
