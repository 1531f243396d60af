"""Embed prints with a trained model; compare, enroll, search, calibrate and export."""
