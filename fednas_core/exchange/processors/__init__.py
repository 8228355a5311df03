"""What is done to every update on its way: refusing and shortening what is far from the others."""
