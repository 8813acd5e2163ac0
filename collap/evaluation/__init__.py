"""How well a model finds: metrics, results, report."""
