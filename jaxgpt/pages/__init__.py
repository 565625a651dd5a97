"""The pages that show a trained model: what is recorded for them, and how they become one HTML file."""
