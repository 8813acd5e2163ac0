"""Hold what train.py needs: loaders, steps, checkpoints, plans and logs; one file for each."""
