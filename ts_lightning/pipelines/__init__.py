"""Offline data making; the training path never imports it."""
