"""One round as folders: its task, what a device answers, and the next task from the answers."""
