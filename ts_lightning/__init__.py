"""ts_lightning: teach vision-language models to ground without forgetting."""

__version__ = "0.1.0"
