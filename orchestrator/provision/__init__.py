"""From power to a booted system: machines, their identity, network boot."""
