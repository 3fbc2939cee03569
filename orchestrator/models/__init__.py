"""Models: what a profile can name, where their files are, what vLLM takes and refuses."""
