"""Predict a model's speed on a layout from probes, before anything is started.

Pure functions. Read them in this order: ``shape`` (the model's sizes), ``layout`` (ranks on nodes),
``links`` and ``engine`` (costs of messages and of the software), ``rates`` (a layout's rates from
probes), ``phase`` and ``steps`` (one step of the engine), ``load`` (many requests), ``measured``
(steps from the engine's own cells), ``outlook`` (a load's figures with ranges), ``rank`` (find the
best layout), ``forecast`` (all of it together), ``whatif`` (machines that are not there),
``explain`` (why a measured time is what it is). docs/explanation/performance-model.md has the
formulas, their sources and their limits.
"""
