"""From an encoded image to the model's input: preprocessing and augmentation."""
