"""What is wrong with a dataset: `fingerprint-accel inspect DATASET --audit`."""
