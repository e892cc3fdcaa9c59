"""One trainer with a loss argument, and the losses it is given."""
