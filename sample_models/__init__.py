"""Sample models: architectures, trained weights with their cards, sample data, and the training script."""
