"""Provide the interface of flx, another implementation of DeepPrint, and load checkpoints of flx."""
