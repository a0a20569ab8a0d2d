"""Sparse4D (Lin et al., 2022 and 2023): sparse instances that sample the images and live from frame to frame."""
