"""What people read: the model card, the tables, the page."""
