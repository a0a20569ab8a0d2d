"""Pictures and videos of what the pipeline sees and finds."""
