"""Images and prompts on their way into the model."""
