"""mergeengine: carry fine-tuning over to new model versions, out of core."""
