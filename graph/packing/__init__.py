"""Packed projections: how one is told, divided and put together."""
