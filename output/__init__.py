"""The folder that a run writes: locked, whole or absent, and checked later against its report."""
