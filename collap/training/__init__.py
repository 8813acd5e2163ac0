"""What train.py needs: batches, steps, checkpoints, plans and logs; one file for each."""
