"""Checks whether a rig of cameras is plausible: calibration, mounting, agreement of pictures, motion and time."""
