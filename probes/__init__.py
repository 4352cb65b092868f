"""The measuring: encoder -> features -> heads -> results -> report."""
