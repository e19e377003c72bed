"""Torture: kills, signals, damage and hostile input, each with a figure. `tools/torture.py` runs them."""
