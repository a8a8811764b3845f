"""Data that ships with the package: prices, GPU kinds, model shapes, the embedded model."""
