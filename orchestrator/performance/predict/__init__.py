"""How fast a model will be on a layout, from what probes measured, before anything is started.

Pure functions, read in this order: ``shape`` (what the model is), ``layout`` (where it lies),
``links`` and ``engine`` (what messages and the software cost), ``rates`` (a layout's figures from
probes), ``phase`` (one step of the engine), ``load`` (many requests), ``calibration`` (the engine
from runs on one node), ``rank`` (which layout is best), ``forecast`` (all of it), ``explain`` (what
a measured time was spent on). docs/explanation/performance-model.md has the formulas, their sources
and their limits.
"""
