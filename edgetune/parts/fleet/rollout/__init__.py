"""A roll-out of one artifact to devices in rings, and what each device does and reports."""
