"""What brings tasks to devices and answers back."""
