"""The demo: fine-tuning carried over to a new version of a tiny model, trained on the spot."""
