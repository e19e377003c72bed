"""The toy world: rendered scenes with exact boxes, and every kind of question about them."""
