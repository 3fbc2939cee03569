"""One node: its desired state as a document, the agent that makes it so, the way to it."""
