"""The pipeline from a frame to its result, the same live and offline."""
