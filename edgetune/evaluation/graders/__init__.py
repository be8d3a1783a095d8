"""What an answer earns: rules written as JSON, and functions in Python."""
