"""Tables of rows: token tables, their quantized layouts, and stacks of experts."""
