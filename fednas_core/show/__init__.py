"""What people read of a run: the report and the terminal."""
