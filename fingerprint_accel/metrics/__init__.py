"""Error rates of verification and identification after ISO/IEC 19795-1, with bootstrap intervals."""
