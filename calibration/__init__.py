"""What a model's weights are multiplied by: statistics of activations, gathered by running the model on a text."""
