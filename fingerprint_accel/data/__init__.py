"""Read fingerprint images, image records and minutiae files, and store prints in Arrow files for training."""
