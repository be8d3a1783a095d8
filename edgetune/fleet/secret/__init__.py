"""Sums in secret: the aggregator sees sums of updates, and no single one."""
