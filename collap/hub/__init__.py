"""Publish and check models: folders, cards, golden vectors and probes. Never copied to the Hub with a model."""
