"""The paths of a daemon that serves a fleet."""
