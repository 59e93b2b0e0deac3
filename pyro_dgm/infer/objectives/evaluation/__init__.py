"""One evaluation of guide and model for all objectives: particles, how they are vectorised, and enumeration."""
