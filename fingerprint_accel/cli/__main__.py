"""Run the command line as `python -m fingerprint_accel.cli` or `accelerate launch --quiet -m fingerprint_accel.cli`."""

from fingerprint_accel.cli import main

main()
