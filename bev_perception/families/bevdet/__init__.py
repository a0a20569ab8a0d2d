"""BEVDet and its successors, from camera images to a grid seen from above (Huang et al., 2021)."""
