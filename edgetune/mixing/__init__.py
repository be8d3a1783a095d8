"""Mixtures of several sources of rows: templates, shares, demonstrations, and what is left out. Pure data."""
