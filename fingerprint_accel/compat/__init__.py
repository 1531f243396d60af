"""Provide the interfaces of flx (fixed-length-fingerprint-extractors), and load its checkpoints."""
