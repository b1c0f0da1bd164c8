"""Attacks on what a server holds, and the audit that runs them: see `mobillm audit`."""
