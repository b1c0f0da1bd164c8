"""Attacks on what a server holds, one a file."""
