"""What the command line shows: progress, tables and the passes' own help."""
