"""Side networks: what the server trains beside a frozen backbone."""
