"""Engines: one graph in, arrays out; one file per back end, the same verbs in each."""
