"""The device's secrets, its release ledger, and the noise it draws."""
