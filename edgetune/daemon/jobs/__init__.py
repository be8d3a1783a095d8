"""Training jobs: what they are made of, their queue, the process that works, and the gate."""
