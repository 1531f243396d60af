"""`python -m fingerprint_accel.cli`, and so `accelerate launch -m fingerprint_accel.cli`."""

from fingerprint_accel.cli import main

main()
