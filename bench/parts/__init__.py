"""What the comparisons in bench/ share."""
