"""The families of models; each is a folder, catalog.py lists them."""
