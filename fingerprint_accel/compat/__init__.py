"""Interfaces and checkpoints of flx (fixed-length-fingerprint-extractors)."""
