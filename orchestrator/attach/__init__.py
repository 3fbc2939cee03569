"""A cluster that others run: ask it, write its profile, check it, load it, say what limits it.

Nothing here needs root, a checkout, or anything installed on a node. Read in this order: ``reach``
(how a node is reached), ``node_facts`` (what runs there, with the tables of ``accelerators``),
``facts`` (what it prints, checked), ``flags`` (vLLM's command lines), ``endpoint``, ``find`` (all
of them at once), ``compose`` (the profile), ``verify``; then ``client`` (a load), ``samples``,
``bench``, ``explain`` (counters to bottlenecks, pure), ``doctor``.
"""
