"""Looking at models and plans: what a checkpoint holds, why a tensor is what it is."""
