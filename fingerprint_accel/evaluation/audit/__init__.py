"""Audit of a dataset: `fingerprint-accel inspect DATASET --audit` lists prints that are probably wrong."""
