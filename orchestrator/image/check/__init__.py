"""Is a lock closed? Every dependency, and every library by the rules of the dynamic loader."""
