"""What is done with a trained model: its cost, its evaluation, its report."""
