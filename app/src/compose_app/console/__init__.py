"""The console: pages on which an operator sees and does what the API offers."""
