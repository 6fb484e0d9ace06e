"""What each weight is for: heads, layers, roles, and all that reads it."""
