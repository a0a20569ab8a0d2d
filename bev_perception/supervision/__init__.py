"""What families share to be trained."""
