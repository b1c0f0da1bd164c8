"""What a comparison runs, with devices that vanish."""
