"""Error rates of verification and identification as defined in ISO/IEC 19795-1, with bootstrap intervals."""
