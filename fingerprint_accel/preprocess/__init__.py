"""Augment, enhance and normalise whole batches of prints on the device."""
