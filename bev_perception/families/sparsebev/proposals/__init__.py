"""Additions of the small variants to SparseBEV: queries that start where a perspective head detects objects."""
