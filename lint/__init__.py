"""Lint: what a target would refuse, compute wrongly or pay for in a file, with the recipe lines that mend it."""
