"""Engines: what runs a model so that it can be scored or asked."""
