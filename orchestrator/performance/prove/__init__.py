"""Proof by intervention: a named cause is changed in steps, and the slope is compared.

Read in this order: ``claim`` (what a cause predicts), ``slope`` (what was measured, and the
verdict), ``changes`` and ``knobs`` (commands that change a node and undo it), ``node_guard`` and
``guards`` (who runs them there, and undoes them in any case), ``trials`` (what is changed for each
cause), ``turns`` (the loads), ``prove`` (all of it, on a cluster of ours).
"""
