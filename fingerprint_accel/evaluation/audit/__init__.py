"""Audit of a dataset: `fingerprint-accel inspect DATASET --audit` lists prints that are probably wrong.

A suspect is one finding of the audit: one or several prints that are probably wrong, with a reason.
"""
