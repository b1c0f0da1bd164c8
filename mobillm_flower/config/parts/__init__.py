"""What can be set: one dataclass a part; meanings are in the docstrings, which the documentation is made from."""
