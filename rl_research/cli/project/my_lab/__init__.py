"""What my_lab brings to its experiments."""
