"""What compression did, for people."""
