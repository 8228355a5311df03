"""A run on disk: its folder, the order of replies, TensorBoard."""
