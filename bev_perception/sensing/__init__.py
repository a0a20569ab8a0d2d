"""From the content of messages to frames and to the input of models."""
