"""What travels between server and device, and how it is checked."""
