"""What is wrong with a trained model."""
