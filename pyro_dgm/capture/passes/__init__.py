"""Passes that rewrite a captured graph."""
