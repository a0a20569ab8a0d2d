"""The families of models: one folder each, listed in catalog.py."""
