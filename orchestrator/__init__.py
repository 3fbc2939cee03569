"""From bare machines to a measured LLM inference cluster."""
