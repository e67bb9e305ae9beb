"""What a model is: its facts, checkpoint, layers and masks."""
