"""The public edge."""
