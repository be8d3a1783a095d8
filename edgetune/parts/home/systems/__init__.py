"""The smart-home systems whose entities a house learns and whose requests it answers."""
