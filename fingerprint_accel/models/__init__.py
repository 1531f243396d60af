"""Define the DeepPrint networks and their dense variants, whose embedding is a grid of vectors, and store models."""
