"""Another base in the slot of a daemon: its evaluation, and what comes with it."""
