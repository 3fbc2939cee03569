"""A live page of a cluster, served on the operator's own machine. Nothing here changes the cluster.

``web`` serves the page and one JSON document; ``gather`` looks at many sources, each in a thread of
its own, while somebody looks at the page; ``ours`` and ``theirs`` say what the sources are, of a
cluster that orchestrate runs and of one that others run; ``minute`` and ``kept`` make figures of
what was seen now, and of what was measured before.
"""
