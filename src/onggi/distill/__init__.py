"""A small model that learns from a large one, and how much of its lead it has taken over in each language."""
