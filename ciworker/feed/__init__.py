"""How lines and state changes reach those who watch; knows the store's reading side only."""
