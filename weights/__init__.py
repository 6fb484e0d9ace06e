"""Lazy weights: where the bytes lie, what will be computed from them, and where the results go."""
