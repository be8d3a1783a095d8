"""Updates become one adapter: which count and how much, the ways to divide the work, and sums."""
