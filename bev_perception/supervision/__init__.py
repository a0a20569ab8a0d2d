"""What all model families share for training: samples, losses and the forward pass."""
