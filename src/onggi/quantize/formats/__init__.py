"""Layouts in which a quantised checkpoint is stored so that other tools load it."""
