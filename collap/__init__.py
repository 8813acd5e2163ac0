"""CoLLAP beyond the model: data, evaluation, corpora, training, and the Hub; `collap` is also the command."""
