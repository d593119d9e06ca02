"""Published weights, weight files in both directions, and adapting weights to another model."""
