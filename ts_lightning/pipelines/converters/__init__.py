"""One file for each foreign format: `read(...)` yields samples."""
