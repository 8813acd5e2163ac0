"""Corpora that are built here; synthetic songs are the first."""
