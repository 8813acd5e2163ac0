"""Data sets of audio and text: opening them, samples, batches, streams, caches."""
