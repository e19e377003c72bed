"""Verbs about shards."""
