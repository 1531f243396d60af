"""Define the DeepPrint networks and their dense variants, and read and write trained models."""
