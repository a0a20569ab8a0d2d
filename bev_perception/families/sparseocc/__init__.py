"""SparseOcc (Liu et al., ECCV 2024)."""
