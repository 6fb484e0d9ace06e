"""The graph that passes edit, and what it means: its file, its tables, its packed projections, its layers."""
