"""Load on the served model, what every node did under it, and which cause explains the time."""
