"""What storage alone does, measured in one process over databases of its own."""
