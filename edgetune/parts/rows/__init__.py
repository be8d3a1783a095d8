"""Rows from what a person has: templates, chats, logs, documents; and several sources mixed into one file."""
