"""Weights in and out: our file, the layouts of other codes, the formats of other libraries."""
