"""What passes between server and clients: orders and answers, how they travel, and what is done to them on the way."""
