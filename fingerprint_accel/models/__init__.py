"""DeepPrint and its dense variants: trunks, heads, alignment networks and saved models."""
