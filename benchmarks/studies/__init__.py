"""Privacy, language modelling and quality on real text."""
