"""Training: what the queries should become, the losses, and the loop. Nothing here is needed to run a model."""
