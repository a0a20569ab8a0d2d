"""The training loop and the data that it reads. Nothing here is needed to run a model."""
