"""Fine-tuning: settings, training sets, the loop, its checkpoints, and fine-tunings as saved runs."""
