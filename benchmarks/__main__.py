"""`python -m benchmarks`: what measures the library itself."""

from benchmarks.comparison.commands import app
from mobillm_flower.cli import main

if __name__ == "__main__":
    main(app)
