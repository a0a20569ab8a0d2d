"""Training: what the models should say, the losses, and the loop. Nothing here is needed to run a model."""
