"""Which devices take part in a fleet: one-time codes, approvals by a person, and signed requests."""
