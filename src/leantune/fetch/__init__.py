"""Weights and texts from a package index, the hub or a local path, kept in a cache."""
