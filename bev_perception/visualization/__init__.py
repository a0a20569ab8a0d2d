"""Pictures and videos of the pipeline's inputs and results."""
