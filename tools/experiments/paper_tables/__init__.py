"""The tables of the three papers: rows and findings as data, one file a group."""
