"""Check that a lock is complete: dependencies of packages, and libraries of ELF files."""
