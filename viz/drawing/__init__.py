"""The figures, and the style that they share."""
