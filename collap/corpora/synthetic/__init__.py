"""Data sets of whole songs with long captions: one file per source, all yielding the same record."""
