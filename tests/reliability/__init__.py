"""Torture: kills, signals, damage and hostile input, each with a figure. `-m tests.reliability` runs them."""
